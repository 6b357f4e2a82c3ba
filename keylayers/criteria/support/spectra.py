"""What weight-only criteria share: a number from the singular values of each of a layer's matrices, and its mean."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.weight_matrices import Matrix, matrices
from keylayers.maths.spectrum import roots_of_gram, upper_gram

OfSpectrum = Callable[[Float[Tensor, " rank"], tuple[int, int]], float]
"""(singular values, largest first, not all 0; shape of the matrix) -> a number."""


def mean_over_matrices(
    evidence: Evidence, layers: Sequence[Layer], of: OfSpectrum, of_zeros: float | None = None
) -> Float[np.ndarray, " layers"]:
    """The number of each layer: of its matrix, or the mean over its matrices weighted by their numbers of scalars.

    The experts of one tensor are of one size, so that theirs is the plain mean. Memory: one stored tensor
    and a float64 square of its shorter side, or two such squares (see `maths.spectrum`).

    Raises:
        BadInput: naming the layer, if it has no matrix, if one has an entry that is no finite number, or if there is no
            number for one (`of` is not finite; all entries are 0 and `of_zeros` is None).
    """
    values = np.empty(len(layers))
    for place, layer in enumerate(layers):
        assert evidence.weights is not None
        found = [
            (_number(matrix, layer, of, of_zeros), math.prod(matrix.shape))
            for matrix in matrices(evidence.weights, layer)
        ]
        if not found:
            raise BadInput(f"layer {layer.name} has no weight matrix, hence no singular values; leave it out.")
        numbers, sizes = zip(*found, strict=True)
        values[place] = np.average(numbers, weights=sizes)
        if evidence.progress:
            evidence.progress(place + 1, len(layers), 0.0)
    return values


def _number(matrix: Matrix, layer: Layer, of: OfSpectrum, of_zeros: float | None) -> float:
    gram = upper_gram(matrix.load())  # the matrix itself is let go before memory is spent on eigenvalues
    found = roots_of_gram(gram).cpu()
    largest = float(found[0])
    if not math.isfinite(largest):
        raise BadInput(f"{matrix.name} of layer {layer.name} holds entries that are no finite numbers (NaN or inf).")
    number = of(found, matrix.shape) if largest > 0 else of_zeros
    if number is None or not math.isfinite(number):
        what = "all its entries are 0" if largest == 0 else "its singular values allow none"
        raise BadInput(f"{matrix.name} of layer {layer.name} has no such number: {what}; leave the layer out.")
    return number
