"""Centroids of classes from a stream of feature rows, and how like them the rows are, each with its own share removed.

Sums are kept, never rows: memory is classes x width.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from keylayers.errors import BadInput


class ClassSums:
    """Sums of the rows of each class, as they come; float64 where the device has it."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        """Rows seen of each class, by the class's number."""
        self._place: dict[int, int] = {}
        self._sums: Tensor | None = None

    def add(self, rows: Float[Tensor, "samples d_model"], classes: Int[Tensor, " samples"]) -> None:
        """One batch.

        Raises:
            BadInput: if its rows are of another width than before.
        """
        exact = rows.to(_exact(rows))
        if self._sums is not None and self._sums.shape[1] != rows.shape[1]:
            raise BadInput(
                f"features have width {rows.shape[1]} after {self._sums.shape[1]} before",
                "give inputs of one size",
                "take the mean over positions (`settings.position=mean`)",
            )
        for one, count in zip(*(part.tolist() for part in classes.unique(return_counts=True)), strict=True):
            self._place.setdefault(one, len(self._place))
            self.counts[one] = self.counts.get(one, 0) + count
        held = 0 if self._sums is None else len(self._sums)
        if len(self._place) > held:
            new = exact.new_zeros(len(self._place) - held, exact.shape[1])
            self._sums = new if self._sums is None else torch.cat([self._sums, new])
        assert self._sums is not None
        self._sums.index_add_(0, self._places(classes).to(rows.device), exact)

    def sums(self, classes: Int[Tensor, " samples"]) -> Float[Tensor, "samples d_model"]:
        """The sum of each one's class."""
        assert self._sums is not None
        return self._sums[self._places(classes).to(self._sums.device)]

    def units(self, classes: Iterable[int]) -> Float[Tensor, "classes d_model"]:
        """Centroids of length 1, in the order asked for; a centroid of 0 stays 0."""
        return unit_rows(self.sums(torch.tensor(list(classes), dtype=torch.long)))

    def cosines(
        self,
        rows: Float[Tensor, "samples d_model"],
        classes: Int[Tensor, " samples"],
        *,
        leave_one_out: bool = True,
    ) -> Float[Tensor, " samples"]:
        """Cosine of each row, one of those added, with the centroid of its class, in [-1, 1]; float64, on the CPU.

        With `leave_one_out` the centroid of the class's other rows: (n m - a) / (n - 1) for n rows of mean m, whose
        length does not matter, so the sum minus the row. That of a class of one row is 0.
        """
        exact = rows.to(_exact(rows))
        others = self.sums(classes)
        return cosines(exact, others - exact if leave_one_out else others).double().cpu()

    def _places(self, classes: Int[Tensor, " samples"]) -> Int[Tensor, " samples"]:
        return torch.tensor([self._place[one] for one in classes.tolist()], dtype=torch.long)


def cosines(a: Float[Tensor, "rows d_model"], b: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
    """Cosine of each pair of rows, in [-1, 1]; 0 where one of them is 0."""
    scale = a.norm(dim=1) * b.norm(dim=1)
    found = torch.einsum("rd,rd->r", a, b) / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    return found.clamp(-1, 1)


def unit_rows(rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """Each row divided by its length; a row of 0 stays 0."""
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _exact(rows: Tensor) -> torch.dtype:
    return torch.float32 if rows.device.type == "mps" else torch.float64
