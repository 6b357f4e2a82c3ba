"""Layers that the data never reaches, kept out of whatever is scored, chosen, drawn or trained, and named."""

from collections.abc import Sequence

from torch import nn

from keylayers.data.batches import batches
from keylayers.data.tokenisation import Examples
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.measures.reach import reached
from keylayers.runs import note
from keylayers.scores import LayerScores
from keylayers.scores.groups import restricted
from keylayers.training.lora_names import adaptable

RECORDS = 4
"""In a batch that is looked at."""


def within_reach(model: nn.Module, layers: Sequence[Layer], examples: Examples) -> tuple[Layer, ...]:
    """The layers that these examples reach, in order; says on standard error which are left out.

    Raises:
        BadInput: if they reach none.
    """
    near = reached(model, layers, batches(examples, RECORDS, shuffle=False))
    far = [layer.name for layer in layers if layer not in near]
    if not near:
        raise BadInput(
            f"the data reaches none of the {len(layers)} layers ({layers[0].name}, ...): the loss depends on none of "
            "them. Give data of the sort these layers read, or another granularity."
        )
    if far:
        note(
            f"left out {len(far)} of {len(layers)} layers, which this data never reaches: {far[0]}"
            + (f" to {far[-1]}" if len(far) > 1 else "")
        )
    return near


def within_adapters(model: nn.Module, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers that LoRA can adapt, in order, of those that are one matrix each; says which are left out."""
    near = adaptable(model, layers)
    far = [layer.name for layer in layers if layer not in near]
    if far:
        note(f"left out {len(far)} of {len(layers)} layers, which peft cannot adapt: {', '.join(far[:3])}")
    return near


def scores_within_reach(
    model: nn.Module, scores: LayerScores, examples: Examples, *, adapted: bool = False
) -> LayerScores:
    """The scores of the layers that these examples reach, and LoRA can adapt where it is to (`adapted`). Raises as
    `within_reach` does."""
    near = within_reach(model, scores.layers, examples)
    if adapted:
        near = within_adapters(model, near)
    return scores if len(near) == len(scores.layers) else restricted(scores, near)
