"""The model card of a score folder: what was scored, by what and on what, the top layers, how to load it."""

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from keylayers.scores.scores import LayerScores

LIBRARY = "keylayers"
TOP = 10
"""Layers shown in the card's table."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#$~])")


def model_card(scores: LayerScores, repo_id: str | None = None) -> str:
    """The card as Markdown with a YAML head; texts from the scores are escaped."""
    head: dict[str, Any] = {"library_name": LIBRARY, "tags": ["layer-importance", "layer-scores", scores.criterion]}
    model = scores.provenance.model
    base = str(model.get("id", ""))
    if HUB_ID.fullmatch(base) and model.get("revision"):  # a local path may look like one
        head["base_model"] = base
    name, criterion = _text(base or model.get("architecture") or "a model"), _text(scores.criterion)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# Layer scores of {name} by {criterion}",
        f"How critical each of {len(scores.layers)} layers ({scores.granularity}) is; higher = more critical."
        + (" Only the order means something, not the size of the numbers." if scores.ordinal else ""),
        f"## The {min(TOP, len(scores.layers))} most critical layers\n\n{_table(scores)}",
        f"## How to load them\n\n```python\n{_usage(repo_id)}\n```",
        f"## Where they come from\n\n{_provenance(scores)}",
    ]
    return "\n\n".join(parts) + "\n"


def is_our_card(text: str) -> bool:
    """Whether a README is a card that this library wrote, which may be replaced; others are somebody's own."""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return head is not None and re.search(rf"^library_name: {LIBRARY}$", head.group(1), re.MULTILINE) is not None


def _table(scores: LayerScores) -> str:
    bounds = scores.interval()
    rows = [["rank", "layer", "block", "kind", "score", *(["95 % interval"] if bounds is not None else [])]]
    rows.append(["---:", "---", "---:", "---", "---:", *(["---"] if bounds is not None else [])])
    for rank, index in enumerate(scores.order()[:TOP].tolist(), start=1):
        layer = scores.layers[index]
        row = [str(rank), _text(layer.name), str("" if layer.block is None else layer.block), _text(layer.kind)]
        row.append(f"{scores.values[index]:.4g}")
        if bounds is not None:
            row.append(f"{bounds[index, 0]:.4g} to {bounds[index, 1]:.4g}")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _usage(repo_id: str | None) -> str:
    place = repo_id if repo_id is not None and HUB_ID.fullmatch(repo_id) else "FOLDER"
    return (
        "from keylayers.scores import LayerScores, select\n\n"
        f'scores = LayerScores.from_pretrained("{place}")\n'
        'selection = select(scores, "top:30%")'
    )


def _provenance(scores: LayerScores) -> str:
    origin = scores.provenance
    facts: dict[str, Any] = {f"model {key}": value for key, value in origin.model.items()}
    for number, entry in enumerate(origin.data, start=1):
        facts[f"data {number}"] = entry
    facts |= {"settings": origin.settings or None, "seed": origin.seed, "versions": origin.versions or None}
    facts |= {"seconds": origin.seconds, "device": origin.device}
    if scores.repeats is not None:
        facts["repeats"] = len(scores.repeats)
    lines = [f"* {_text(name)}: {_text(_plain(value))}" for name, value in facts.items() if value is not None]
    return "\n".join(lines) or "Nothing is recorded."


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    """The value as one line of Markdown in which nothing means more than it says."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))
