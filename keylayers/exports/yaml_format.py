"""YAML as people read it: in the order given, one name a line, under a comment that says where it came from."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from keylayers.scores.selection import Selection


def yaml_text(values: Mapping[str, Any], selection: Selection, notes: Sequence[str] = ()) -> str:
    """The mapping as YAML, below the policy it came from and the notes."""
    title = f"{len(selection)} of {len(selection.layers)} layers: {_one_line(selection.policy)}"
    comments = "".join(f"# {line}\n" for line in (title, *notes))
    return comments + yaml.safe_dump(dict(values), sort_keys=False, width=10**6, allow_unicode=True)


def _one_line(text: str) -> str:
    """A policy by hand may hold anything; a comment ends with its line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else f"{flat[:97]}..."
