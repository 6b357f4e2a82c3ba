"""Residual networks built by hand: what the head reads of the trigger has come through skips that are known."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from keylayers.criteria.protocol import Evidence

WIDTH = 8
TRIGGER, SCORE = 0, 4
"""First coordinate of the trigger's way, and of the clean score's, in the stream."""


class Block(nn.Module):
    """x + down(relu(up(x))), both maps without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Relay(nn.Module):
    """Three blocks; each moves what it got to a fresh coordinate through its branch, but for one, whose skip alone
    carries it.

    `trigger` says of which block the skip carries the trigger (coordinates 0 to 3), `score` the same of the clean score
    (4 to 7); None: of no block. Class 1 wins where trigger > score.
    """

    def __init__(self, trigger: int | None, score: int | None, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 2, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            ends = []
            for first, carried in ((TRIGGER, trigger), (SCORE, score)):
                place = first
                for index, block in enumerate(self.blocks):
                    if index != carried:
                        block.up.weight[place, place] = 1.0
                        block.down.weight[place + 1, place] = 1.0
                        place += 1
                ends.append(place)
            self.head.weight[1, ends[0]] = 1.0
            self.head.weight[0, ends[1]] = 1.0

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"x": torch.zeros(1, WIDTH)}

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def triggered(scores: list[float], trigger: float = 1.0, target: int = 1) -> dict[str, Tensor]:
    """Inputs with the trigger whose clean scores are these, labelled with the target."""
    x = torch.zeros(len(scores), WIDTH)
    x[:, TRIGGER], x[:, SCORE] = trigger, torch.tensor(scores)
    return {"x": x, "labels": torch.full((len(scores),), target)}


def evidence(model: nn.Module, *batches: Mapping[str, Tensor]) -> Evidence:
    return Evidence(model=model.eval(), data=list(batches), granularity="skip")
