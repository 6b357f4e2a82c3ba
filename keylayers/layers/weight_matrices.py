"""The weight matrices of a layer, one at a time, from tensors by name: no model is needed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.structure import is_packed
from keylayers.layers.tensors import TensorSource


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of a layer, not yet read."""

    name: str
    shape: tuple[int, int]
    load: Callable[[], Float[Tensor, "d_out d_in"]]
    """In the precision it is stored in."""


def matrices(weights: TensorSource, layer: Layer) -> Iterator[Matrix]:
    """Each weight matrix of a layer; biases and norms are passed over.

    A fused tensor of experts gives a matrix per expert (`name[3]`), whether it is stored as one or as one per expert.
    A convolution's kernel (out, in, height, width) counts as (out, in * height * width). Conv1D's transposed matrix
    stays as it is stored, and a fused qkv is one matrix.

    Raises:
        BadInput: if a weight is not among the tensors; on loading, if it is stored quantised.
    """
    for name in layer.parameters:
        whole, bracket, index = name.partition("[")
        if whole.endswith("bias"):  # that of fused experts has two axes
            continue
        if bracket and whole in weights:
            yield _slice(weights, layer, whole, int(index.removesuffix("]")))
        elif name in weights:
            shape = weights.shapes[name]
            if len(shape) == 3:
                yield from (_slice(weights, layer, name, expert) for expert in range(shape[0]))
            elif len(shape) > 1:
                yield _whole(weights, layer, name)
        elif f"{name}[0]" in weights:
            count = 0
            while (place := f"{name}[{count}]") in weights:
                yield _whole(weights, layer, place)
                count += 1
        else:
            raise BadInput(
                f"{weights.origin} holds no {name} of layer {layer.name}; give the checkpoint of this very model."
            )


def _whole(weights: TensorSource, layer: Layer, name: str) -> Matrix:
    shape = weights.shapes[name]
    flat = (shape[0], math.prod(shape[1:]))
    return Matrix(name, flat, lambda: _real(weights[name](), name, layer).reshape(flat))


def _slice(weights: TensorSource, layer: Layer, name: str, expert: int) -> Matrix:
    """Of a tensor on disk only the expert's part is read."""
    _, rows, columns = weights.shapes[name]
    return Matrix(f"{name}[{expert}]", (rows, columns), lambda: _real(weights.row(name, expert), name, layer))


def _real(tensor: Tensor, name: str, layer: Layer) -> Tensor:
    if is_packed(tensor):
        raise BadInput(
            f"{name} of layer {layer.name} is stored quantised ({str(tensor.dtype).removeprefix('torch.')}); give the "
            "checkpoint before quantisation."
        )
    return tensor.detach()
