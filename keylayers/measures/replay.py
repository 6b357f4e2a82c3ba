"""A network's answers, kept: its features and logits for some images, computed once and given again to all who ask."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.measures.features import ANSWERS, features_of
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import Batch


class Replay(nn.Module):
    """Stands for a network of images wherever only its logits and its features at some layers are asked for: its input
    is the places of the images, in the order in which they were given.

    None of the layers may lie inside another. Memory: what each layer makes of each image, at least float32.
    """

    def __init__(
        self, features: Mapping[str, Float[Tensor, "images d_model"]], logits: Float[Tensor, "images classes"]
    ) -> None:
        super().__init__()
        self.names, self.logits = tuple(features), logits
        for name, rows in features.items():
            *path, last = name.split(".")
            parent: nn.Module = self
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, _Rows(rows))

    def forward(self, x: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        for name in self.names:  # where hooks look
            self.get_submodule(name)(x)
        return self.logits[x]


class _Rows(nn.Module):
    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x]


def replay_of(
    model: nn.Module, layers: Sequence[str], *parts: Sequence[Batch]
) -> tuple[Replay, tuple[list[Batch], ...]]:
    """The network's answers to all these batches of images, from one pass over each in eval mode; and the batches as
    the replay takes them, answers (`labels`) included.

    Raises:
        UnknownName: for a layer that the network does not have. Diverged: if features are not finite; names the layer.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    outputs: list[Tensor] = []
    made: list[list[Batch]] = []
    count = 0
    with evaluating(model), torch.no_grad():
        for part in parts:
            made.append([])
            for batch in part:
                found, logits = features_of(model, batch, layers)
                for name, held in found.items():
                    rows[name].append(held.cpu())
                outputs.append(logits.cpu())
                answers = {key: batch[key] for key in ANSWERS if key in batch}
                made[-1].append({"x": torch.arange(count, count + len(logits)), **answers})
                count += len(logits)
    return Replay({name: torch.cat(held) for name, held in rows.items()}, torch.cat(outputs)), tuple(made)
