"""Whether scores belong to a model: every scored layer is there, with the size it had when it was scored."""

from torch import nn

from keylayers.errors import BadScores
from keylayers.layers.blocks import scalars
from keylayers.layers.layer import Layer
from keylayers.layers.structure import logical_shape, parameters_of
from keylayers.runs import note
from keylayers.scores import LayerScores


def check_scores_fit(scores: LayerScores, model: nn.Module, source: str) -> None:
    """Raises BadScores, saying what differs, unless every scored layer is in the model with the scored size."""
    present = parameters_of(model)

    def size(layer: Layer) -> int:
        wholes = [(present[name.partition("[")[0]], "[" in name) for name in layer.parameters]
        return sum(scalars(value) // (logical_shape(value)[0] if sliced else 1) for value, sliced in wholes)

    def is_there(layer: Layer) -> bool:
        return all(name.partition("[")[0] in present for name in layer.parameters)

    missing = [layer.name for layer in scores.layers if not is_there(layer)]
    resized = [layer for layer in scores.layers if layer.name not in missing and size(layer) != layer.size]
    scored = scores.provenance.model
    if missing or resized:
        parts = []
        if missing:
            shown = ", ".join(missing[:3])
            parts.append(f"{len(missing)} of the {len(scores.layers)} scored layers are not in it ({shown})")
        if resized:
            one = resized[0]
            parts.append(f"{len(resized)} have another size ({one.name}: {one.size:,} when scored, {size(one):,} here)")
        raise BadScores(
            f"the scores are of {scored.get('id', 'another model')!r} ({scored.get('architecture', 'unknown')}), and "
            f"the model {source!r} ({type(model).__name__}) differs: {'; '.join(parts)}. Score this model, or name the "
            "one that was scored as `model`."
        )
    if scored.get("id") not in (None, source):
        note(f"the scores are of {scored['id']}; the model is {source}, which has the same layers")
