"""Computing a network's lower blocks once: their outputs are kept, and later passes start at a chosen block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count

from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.blocks import find_blocks
from keylayers.layers.capturing import first_tensor, hidden_input
from keylayers.layers.intervene import with_first
from keylayers.layers.layer import Layer
from keylayers.layers.structure import modules_named, uncompiled, walk


class BlockOutputs(dict[int, object]):
    """Block index -> what the block returned in the pass that was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.below: dict[str, int] = {}
        """Module name -> how many of the first blocks had all returned when it was first called."""

    def start(self, layer: Layer) -> int:
        """The first block that can change when the layer does: its own, or for a layer outside the blocks the one that
        runs after it (0 for an embedding, the number of blocks for an output head)."""
        names = [name for name in (*layer.parameters, layer.tied_to) if name]
        places = [name.split("[")[0].rpartition(".")[0] for name in names]
        return min(self.below.get(place, layer.block or 0) for place in places)


@contextmanager
def block_outputs(model: nn.Module, *, calls: bool = True) -> Iterator[BlockOutputs]:
    """Keeps what every block returns in the forward pass inside the block; with `calls`, also `below`."""
    outputs = BlockOutputs()
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for node in walk(model) if calls else ():

            def note(module: nn.Module, args: object, name: str = node.name) -> None:
                if name not in outputs.below:
                    outputs.below[name] = next(index for index in count() if index not in outputs)

            stack.callback(node.module.register_forward_pre_hook(note).remove)
        for index, block in enumerate(modules_named(model, find_blocks(model))):

            def keep(module: nn.Module, args: object, output: object, index: int = index) -> None:
                outputs[index] = output

            stack.callback(block.register_forward_hook(keep).remove)
        yield outputs


@contextmanager
def resumed(model: nn.Module, outputs: BlockOutputs, block: int | None) -> Iterator[nn.Module]:
    """The model with all blocks below `block` answering from `outputs` without computing; None: all of them.

    Exact when inputs are those of the pass that was kept and nothing that runs before `block` has changed;
    `outputs.start(layer)` is the block for a change of one layer. Memory: the kept outputs.
    """
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for index, module in enumerate(modules_named(model, find_blocks(model))):
            if (block is None or index < block) and index in outputs:
                kept = outputs[index]
                stack.enter_context(_answering(module, lambda *args, kept=kept, **kwargs: kept))
        yield model


@contextmanager
def bypassed(
    model: nn.Module, outputs: BlockOutputs, added: Mapping[int, Callable[[Tensor], Tensor] | None]
) -> Iterator[nn.Module]:
    """The model with some blocks not computed: each hands its input on, plus a function of it where one is given.

    What else a block returns (attention weights, a position bias) is that of the pass that was kept in `outputs`, whose
    batch must be the same.

    Raises:
        BadInput: for a block whose output has another shape than its input.
    """
    names = find_blocks(model)

    def answer_of(index: int) -> Callable[..., object]:
        def answer(*args: object, **kwargs: object) -> object:
            hidden, kept = hidden_input(args, kwargs), outputs[index]
            if hidden.shape != (shape := first_tensor(kept).shape):
                raise BadInput(
                    f"block {names[index]!r} takes shape {tuple(hidden.shape)} and returns {tuple(shape)}, so that it "
                    "cannot be the identity; leave it out of the layers."
                )
            plus = added[index]
            return with_first(kept, hidden if plus is None else hidden + plus(hidden))

        return answer

    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for index, module in zip(added, modules_named(model, [names[index] for index in added]), strict=True):
            stack.enter_context(_answering(module, answer_of(index)))
        yield model


@contextmanager
def _answering(module: nn.Module, answer: Callable[..., object]) -> Iterator[None]:
    own = module.__dict__.get("forward")  # accelerate and torch.compile put theirs on the instance
    module.forward = answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
