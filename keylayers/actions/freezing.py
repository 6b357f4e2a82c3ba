"""Only the selected layers train, for a while (a context manager) or for good, and what that will cost."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from keylayers.errors import BadSelection
from keylayers.layers.blocks import find_blocks, scalars
from keylayers.layers.structure import parameters_of, walk
from keylayers.scores.selection import Selection


@contextmanager
def tuning_only(model: nn.Module, selection: Selection) -> Iterator[list[nn.Parameter]]:
    """The parameters of exactly the selected layers, which alone ask for gradients until the block ends.

    Give them to any optimiser. Enter before a Trainer is built: it makes its optimiser once, and what asks for
    gradients later never trains. Every `requires_grad` flag is put back at the end. Frozen batch norms still move their
    running statistics in training mode; `keylayers.training.hold_statistics(model)` after `model.train()` stops that.

    Raises:
        BadSelection: if a layer is not in the model, is quantised, or shares its weight with something not selected.
    """
    chosen = selected_parameters(model, selection)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        yield list({id(parameter): parameter for parameter in chosen.values()}.values())
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def freeze(model: nn.Module, selection: Selection) -> "Forecast":
    """Freezes all but the selected layers, for good: the lasting `tuning_only`. Returns what training them costs.

    Call it before a Trainer or an optimiser is made: those collect what asks for gradients once, so that later calls
    train nothing more. Adapters that the model carries are frozen too.

    Raises:
        BadSelection: as `tuning_only` does, or if nothing is selected; every `requires_grad` is then as it was.
    """
    chosen = selected_parameters(model, selection)
    plan = forecast(model, selection)
    model.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return plan


def selected_parameters(model: nn.Module, selection: Selection) -> dict[str, nn.Parameter]:
    """Unwrapped name -> parameter, of the selected layers, each once. Raises BadSelection as `tuning_only` does."""
    present = parameters_of(model)
    names = [name for layer in selection.chosen for name in layer.parameters]
    if sliced := next((name for name in names if "[" in name), None):
        raise BadSelection(
            f"{sliced} is a slice of a fused tensor, which trains as a whole or not at all",
            "score and select layers of granularity linear",
        )
    absent = [name for name in names if name not in present]
    if absent:
        raise BadSelection(
            f"{len(absent)} of the {len(names)} selected parameters are not in this model, first "
            f"{', '.join(absent[:3])}; the scores are of another model. Score this one."
        )
    chosen = {name: present[name] for name in names}
    ours = {id(parameter) for parameter in chosen.values()}
    shared = [name for name, value in present.items() if id(value) in ours and name not in chosen]
    if shared:
        owner = next(name for name, value in chosen.items() if value is present[shared[0]])
        raise BadSelection(
            f"{owner} is tied to {shared[0]}: training one trains both",
            "select layers without it",
            "untie the weights first: tie_word_embeddings set to false in the configuration, and a copy of the tensor",
        )
    if packed := next((name for name, value in chosen.items() if not value.is_floating_point()), None):
        raise BadSelection(
            f"{packed} is stored as {str(chosen[packed].dtype).removeprefix('torch.')}, which no gradient can change",
            "use `method=qlora`",
            "load the model without quantisation",
        )
    if not chosen:
        raise BadSelection("the selection holds no parameter, so nothing would train.")
    return chosen


def tensors_that_may_change(model: nn.Module, selection: Selection) -> set[str]:
    """Names of the selected parameters, and of the buffers beside them (running statistics of batch norms)."""
    names = {name for layer in selection.chosen for name in layer.parameters}
    owners = {name.rpartition(".")[0] for name in names}
    buffers = {
        f"{node.name}.{key}".removeprefix(".")
        for node in walk(model)
        if node.name in owners
        for key in node.inner._buffers
    }
    return names | buffers


@dataclass(frozen=True)
class Forecast:
    """What training a selection costs, before it is done."""

    trainable: int
    """Scalars that train."""
    total: int
    optimiser_bytes: int
    """The gradient and Adam's two moments, each as large as what trains: 12 bytes per scalar in fp32."""
    lowest_block: int | None
    """Block the backward pass must reach, with or without checkpointing; None where only layers outside the blocks
    train."""
    blocks: int
    reaches_embeddings: bool
    """Whether a layer before the blocks trains, so that the backward pass runs through the whole network."""

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


def forecast(model: nn.Module, selection: Selection, adapters: Iterable[nn.Parameter] | None = None) -> Forecast:
    """Cost of training a selection: its own parameters, or the adapters that stand for them."""
    unique = {id(value): value for value in parameters_of(model).values()}
    trained = list(selected_parameters(model, selection).values()) if adapters is None else list(adapters)
    within = [layer.block for layer in selection.chosen if layer.block is not None]
    first = next((i for i, layer in enumerate(selection.layers) if layer.block is not None), len(selection.layers))
    return Forecast(
        trainable=sum(scalars(value) for value in trained),
        total=sum(scalars(value) for value in unique.values()),
        optimiser_bytes=sum(3 * value.element_size() * value.numel() for value in trained),
        lowest_block=min(within, default=None),
        blocks=len(find_blocks(model)),
        reaches_embeddings=bool(selection.mask[:first].any()),
    )
