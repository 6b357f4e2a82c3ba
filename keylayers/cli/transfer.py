"""`keylayers transfer`: the ranking of one model, mapped to the layers of another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keylayers.cli.terminal import quiet_libraries, say, table
from keylayers.errors import BadInput


def run_transfer(source: str, to: str, out: Path | None, trust_remote_code: bool) -> None:
    """`keylayers transfer`: what matched, the most critical layers, and the file that was asked for."""
    from keylayers.scores import load_scores, save, transferred
    from keylayers.scores.transfer import NOTE

    if out is not None and out.suffix != ".json":
        raise BadInput(f"--out {out}: a transferred ranking is one file; give a name that ends in .json.")
    scores = load_scores(source)
    quiet_libraries()
    from keylayers.layers import named_layers
    from keylayers.models.loading import LoadedModel, load_shape

    model = load_shape(to, trust_remote_code=trust_remote_code)
    layers = named_layers(model, scores.granularity)
    result = transferred(scores, layers, LoadedModel(model, to).identity())
    rows = [
        (layer.name, f"{result.values[index]:.3f}", f"{layer.size:,}")
        for index, layer in ((index, layers[index]) for index in result.order()[:10])
    ]
    say(f"{result.criterion}: the 10 most critical of {len(layers)} layers")
    say(table(("layer", "rank share", "parameters"), rows))
    for line in _account(result.provenance.settings[NOTE], to):
        say(line)
    if out is not None:
        save(result, out)
        say(f"stored in {out}")


def _account(note: Mapping[str, Any], to: str) -> list[str]:
    """How many layers took their place which way, and which roles stood for others."""
    origin, total = note["from"], note["by_role"] + note["by_stand_in"] + note["by_depth_alone"]
    told = origin["model"].get("id") or "a model that the scores do not name"
    lines = [f"{note['by_role']} of {total} layers of {to} matched by role and relative depth, from {told}"]
    if note["by_stand_in"]:
        shown = "; ".join(f"{role} from {', '.join(read)}" for role, read in note["stand_ins"].items())
        lines.append(f"{note['by_stand_in']} fell back on roles that stand for theirs: {shown}")
    if note["by_depth_alone"]:
        roles = ", ".join(note["without_counterpart"])
        lines.append(f"{note['by_depth_alone']} fell back on depth alone, without a counterpart: {roles}")
    return [*lines, "only an order is transferred; whether it picks good layers there is not known before it is tried"]
