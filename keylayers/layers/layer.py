"""The Layer record: one unit that can receive a score, resolved once so that nobody parses a dot downstream."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from keylayers.errors import UnknownName

Granularity = Literal["block", "sublayer", "linear", "expert", "router", "conv", "skip"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


@dataclass(frozen=True)
class Layer:
    """One unit that receives a score: a block, a linear map, an expert, a router, a convolution."""

    name: str
    """Full name in the unwrapped model, as Hugging Face spells it: of a module, of a fused expert parameter
    (`experts.down_proj`) or of an expert in it (`experts[3]`); BERT's mlp joins two modules with `+`. A skip connection
    that is no module is `BLOCK.skip`, numbered where its block has several."""
    block: int | None
    """Index of the residual block it lies in, counted over the whole network; None outside the blocks."""
    kind: str
    """Name inside its block (`mlp.down_proj`), or the full name outside the blocks (`lm_head`)."""
    parameters: tuple[str, ...]
    """Full names of its parameters; `name[3]` is slice 3 of a fused expert parameter."""
    size: int
    """Number of scalars in those parameters."""
    lora_size: int = 0
    """Scalars that LoRA of rank 1 adds to it: d_in + d_out of each of its matrices."""
    tied_to: str | None = None
    """Parameter elsewhere that shares its storage (an output head tied to the embeddings); training one trains both."""

    @property
    def stored(self) -> tuple[str, ...]:
        """Its parameters as a checkpoint names them: what is tied is stored under its first name."""
        return self.parameters if self.tied_to is None else (self.tied_to,)


def layer_named(layers: Sequence[Layer], name: str) -> Layer:
    """The layer of that name. Raises UnknownName with the nearest names."""
    for layer in layers:
        if layer.name == name:
            return layer
    raise UnknownName("layer", name, (layer.name for layer in layers))


def total_size(layers: Iterable[Layer]) -> int:
    """Number of scalars in the layers together."""
    return sum(layer.size for layer in layers)
