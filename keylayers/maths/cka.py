"""Centred kernel alignment: how alike two representations of the same samples are, up to rotation and scale."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.errors import BadInput, UnknownName

Kernel = Literal["linear", "rbf"]
Estimator = Literal["biased", "unbiased"]
LEAST = {"biased": 2, "unbiased": 4}
"""Fewest samples an estimator is defined for."""
_DEGENERATE = 1e-20  # squared norm of a centred Gram matrix beside the uncentred: below it, only rounding is left

Representation = Float[Tensor, "samples _"]
Table = Float[Tensor, "layers layers"]


def measure_cka(
    x: Representation,
    y: Representation,
    *,
    kernel: Kernel = "linear",
    estimator: Estimator = "biased",
    bandwidth: float = 1.0,
) -> float:
    """CKA of two representations; see `cka_table`."""
    return float(cka_table([x, y], kernel=kernel, estimator=estimator, bandwidth=bandwidth)[0, 1])


def cka_table(
    representations: Sequence[Representation],
    *,
    kernel: Kernel = "linear",
    estimator: Estimator = "biased",
    bandwidth: float = 1.0,
) -> Table:
    """CKA of every pair of representations, float64; 1 on the diagonal; in [0, 1] if biased, in [-1, 1] if unbiased.

    HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) (Kornblith et al. 2019, Eq. 3 and 4). Biased: HSIC is the sum of products
    of the doubly centred Gram matrices. Unbiased: HSIC_1 (Song et al. 2012, Eq. 5; Nguyen et al. 2021, Eq. 3), which is
    near 0 for independent representations, where the biased one tends to 1 as they get wider than there are samples.
    `rbf`: exp(-|x_i - x_j|^2 / 2 s^2), s = `bandwidth` times the square root of the median squared distance.
    Every Gram matrix is made and centred once; memory: one of samples x samples per layer. Narrow linear
    representations are compared by their d x d products instead, where that is less work.

    Raises:
        BadInput: for too few samples, other numbers of them, or a representation that is the same for all of them.
    """
    _admit([len(one) for one in representations], estimator)
    if kernel == "linear" and _narrow([one.shape[1] for one in representations], len(representations[0])):
        return normalised(_feature_products(representations, estimator))
    return table_of_grams(grams(representations, kernel=kernel, bandwidth=bandwidth), estimator=estimator)


def grams(
    representations: Sequence[Representation], *, kernel: Kernel = "linear", bandwidth: float = 1.0
) -> Float[Tensor, "layers samples samples"]:
    """Gram matrix of each representation, float64; the linear one of its columns' deviations from their mean, to which
    CKA is indifferent and which keeps large common offsets from drowning the rest in rounding."""
    if kernel not in get_args(Kernel):
        raise UnknownName("kernel", str(kernel), get_args(Kernel))
    made = torch.stack([(x := _deviations(one)) @ x.T for one in representations])
    if kernel == "rbf":
        for gram in made:
            gram.copy_(_gaussian(gram, bandwidth))
    return made


def _deviations(representation: Representation) -> Representation:
    precise = representation.double()
    mean = precise.mean(0)
    deviations = precise - mean
    return deviations.masked_fill_(deviations.abs() <= 1e-13 * mean.abs(), 0)  # rounding of the mean itself


def _gaussian(gram: Tensor, bandwidth: float) -> Tensor:
    squares = gram.diagonal()
    distances = (squares[:, None] + squares - 2 * gram).clamp_min(0)
    distances.fill_diagonal_(0)
    apart = distances[distances > 0]
    if not len(apart):
        raise BadInput("a representation is the same for all samples, so it has no median distance.")
    variance = float(np.median(apart.cpu().numpy())) * bandwidth**2
    return torch.exp(distances / (-2 * variance))


def table_of_grams(made: Float[Tensor, "layers samples samples"], *, estimator: Estimator = "biased") -> Table:
    """CKA of every pair of Gram matrices over the same samples; as `cka_table`."""
    _admit([made.shape[-1]], estimator)
    flat = centred(made, estimator).flatten(1)
    return normalised(flat @ flat.T, made.flatten(1).square().sum(1))


def centred(
    made: Float[Tensor, "layers samples samples"], estimator: Estimator
) -> Float[Tensor, "layers samples samples"]:
    """Gram matrices centred so that their inner products are proportional to HSIC.

    Biased: H K H. Unbiased: the U-centred matrix, whose inner products are n (n - 3) HSIC_1 (Szekely and Rizzo 2014).
    """
    n = made.shape[-1]
    if estimator == "biased":
        means = made.mean(-1, keepdim=True)
        return made - means - means.mT + means.mean(-2, keepdim=True)
    hollow = made.clone()
    hollow.diagonal(dim1=-2, dim2=-1).zero_()
    sums = hollow.sum(-1, keepdim=True)
    hollow -= (sums + sums.mT) / (n - 2) - sums.sum(-2, keepdim=True) / ((n - 1) * (n - 2))
    hollow.diagonal(dim1=-2, dim2=-1).zero_()
    return hollow


def normalised(products: Table, sizes: Float[Tensor, " layers"] | None = None) -> Table:
    """Inner products over the square roots of the diagonal's; `sizes`: what the diagonal is large or small beside.

    Raises:
        BadInput: naming a representation by its place, if nothing of it is left after centring.
    """
    own = products.diagonal()
    bad = ~(own > 0 if sizes is None else own > _DEGENERATE * sizes)
    if bad.any():
        raise BadInput(
            f"representation {int(bad.nonzero()[0])} is the same for all samples (or not finite), so nothing can be "
            "compared with it; take other positions, or more varied samples."
        )
    scale = own.sqrt()
    return products / scale[:, None] / scale


def _narrow(widths: Sequence[int], samples: int) -> bool:
    """Whether products of d x d are less work than Gram matrices: multiplications of one way and of the other."""
    total, squares = sum(widths), sum(width * width for width in widths)
    by_features = samples * (total * total + squares) / 2  # pairs with themselves counted once
    by_grams = samples**2 * (total + len(widths) * (len(widths) + 1) / 2)
    return by_features < by_grams


def _feature_products(representations: Sequence[Representation], estimator: Estimator) -> Table:
    """Inner products of the centred linear Gram matrices, from |X^T Y|^2 and the samples' own squared lengths.

    With centred columns, row i of a Gram matrix sums to 0, so without its diagonal to -|x_i|^2.
    """
    deviations = [_deviations(one) for one in representations]
    n, count = len(deviations[0]), len(deviations)
    products = torch.zeros(count, count, dtype=torch.float64, device=deviations[0].device)
    for row, x in enumerate(deviations):
        for column, y in enumerate(deviations[: row + 1]):
            products[row, column] = products[column, row] = (x.T @ y).square().sum()
    if estimator == "unbiased":
        lengths = torch.stack([x.square().sum(1) for x in deviations])
        sums = lengths.sum(1)
        products = products - lengths @ lengths.T * (n / (n - 2)) + torch.outer(sums, sums) / ((n - 1) * (n - 2))
    return products


class MinibatchCka:
    """Unbiased CKA of every pair from small groups of samples, one after another: memory of one group and the table.

    HSIC_1 is averaged over the groups, weighted by their samples, before it is normalised (Nguyen et al. 2021, Eq. 2);
    the biased estimator has no such form, since its value depends on the size of the groups.
    """

    def __init__(self, *, kernel: Kernel = "linear", bandwidth: float = 1.0) -> None:
        self.kernel, self.bandwidth = kernel, bandwidth
        self._products: Tensor | None = None
        self._sizes: Tensor | None = None

    def add(self, representations: Sequence[Representation]) -> None:
        """One group of at least four samples, in every representation. Raises BadInput for fewer."""
        _admit([len(one) for one in representations], "unbiased")
        n = len(representations[0])
        made = grams(representations, kernel=self.kernel, bandwidth=self.bandwidth)
        flat = centred(made, "unbiased").flatten(1)
        products, sizes = flat @ flat.T / (n - 3), made.flatten(1).square().sum(1) / (n - 3)
        self._products = products if self._products is None else self._products + products
        self._sizes = sizes if self._sizes is None else self._sizes + sizes

    def table(self) -> Table:
        """CKA of every pair over all groups. Raises BadInput before the first group, and as `normalised`."""
        if self._products is None:
            raise BadInput("no group of at least four samples was added, so there is nothing to compare.")
        return normalised(self._products, self._sizes)


def _admit(samples: Sequence[int], estimator: str) -> None:
    if estimator not in LEAST:
        raise UnknownName("estimator", str(estimator), LEAST)
    if len(set(samples)) != 1:
        raise BadInput(f"representations are compared over the same samples, got {sorted(set(samples))} of them.")
    if samples[0] < LEAST[estimator]:
        raise BadInput(
            f"{estimator} CKA needs at least {LEAST[estimator]} samples, got {samples[0]}; give more records."
        )
