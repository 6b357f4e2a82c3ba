"""Only the selected layers train: a context manager for any training loop, and what that will cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from keylayers.errors import BadSelection
from keylayers.layers.blocks import find_blocks, scalars
from keylayers.layers.structure import parameters_of
from keylayers.scores.selection import Selection


@contextmanager
def tuning_only(model: nn.Module, selection: Selection) -> Iterator[list[nn.Parameter]]:
    """The parameters of exactly the selected layers, which alone ask for gradients until the block ends.

    Give them to any optimiser. Enter before a Trainer is built: it makes its optimiser once, and what asks for gradients
    later never trains. Every `requires_grad` flag is put back at the end.

    Raises:
        BadSelection: if a layer is not in the model, or shares its weight with something outside the selection.
    """
    chosen = selected_parameters(model, selection)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        yield list(chosen.values())
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def selected_parameters(model: nn.Module, selection: Selection) -> dict[str, nn.Parameter]:
    """Unwrapped name -> parameter, of the selected layers, each once. Raises BadSelection as `tuning_only` does."""
    present = parameters_of(model)
    names = [name for layer in selection.chosen for name in layer.parameters]
    if sliced := next((name for name in names if "[" in name), None):
        raise BadSelection(
            f"{sliced} is a slice of a fused tensor, which trains as a whole or not at all; select at --granularity linear."
        )
    absent = [name for name in names if name not in present]
    if absent:
        raise BadSelection(
            f"{len(absent)} of the selected parameters are not in this model ({', '.join(absent[:3])}); "
            "the scores are of another model, or of another granularity."
        )
    chosen = {name: present[name] for name in names}
    ours = {id(parameter) for parameter in chosen.values()}
    shared = [name for name, value in present.items() if id(value) in ours and name not in chosen]
    if shared:
        owner = next(name for name, value in chosen.items() if value is present[shared[0]])
        raise BadSelection(
            f"{owner} is tied to {shared[0]}: training one trains both. Leave that layer out, or untie the weights first."
        )
    if not chosen:
        raise BadSelection("the selection holds no parameter, so nothing would train.")
    return chosen


@dataclass(frozen=True)
class Forecast:
    """What training a selection costs, before it is done."""

    trainable: int
    """Scalars that train."""
    total: int
    optimiser_bytes: int
    """Gradients and Adam's two moments in fp32: 12 bytes per trainable scalar."""
    lowest_block: int | None
    """Block the backward pass must reach; None where only layers after the blocks train."""
    blocks: int
    reaches_embeddings: bool
    """Whether checkpointing or a layer before the blocks makes the backward pass run through the whole network."""

    @property
    def share(self) -> float:
        """Trainable share of all parameters, in [0, 1]."""
        return self.trainable / self.total

    def __str__(self) -> str:
        if self.reaches_embeddings:
            depth = f"all {self.blocks} blocks, to the embeddings"
        elif self.lowest_block is None:
            depth = "no block"
        else:
            depth = f"{self.blocks - self.lowest_block} of {self.blocks} blocks (down to block {self.lowest_block})"
        return (
            f"trainable {self.trainable:,} of {self.total:,} parameters ({self.share:.2%}); "
            f"gradients and optimiser {self.optimiser_bytes / 2**20:,.1f} MiB; backward pass through {depth}"
        )


def forecast(
    model: nn.Module, selection: Selection, *, trainable: int | None = None, checkpointing: bool = False
) -> Forecast:
    """Cost of training a selection; `trainable` overrides its own size where adapters train instead of weights."""
    unique = {id(value): value for value in parameters_of(model).values()}
    within = [layer.block for layer in selection.chosen if layer.block is not None]
    first = next((i for i, layer in enumerate(selection.layers) if layer.block is not None), len(selection.layers))
    before = any(selection.mask[i] for i in range(first))
    count = selection.size if trainable is None else trainable
    return Forecast(
        trainable=count,
        total=sum(scalars(value) for value in unique.values()),
        optimiser_bytes=12 * count,
        lowest_block=min(within, default=None),
        blocks=len(find_blocks(model)),
        reaches_embeddings=before or checkpointing,
    )
