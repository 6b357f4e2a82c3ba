"""A device beside the CPU that needs no hardware: its tensors hold real numbers and refuse to meet those of the CPU.

FakeTensorMode knows which devices mix, but no numbers, so a `float(loss)` ends it. Here a tensor says that it lies on
`AWAY`, computes on the CPU, and what a GPU would refuse raises: an operation on tensors of both places, or a generator
of the one for numbers of the other. As on a GPU, numbers without a shape and indices may come from the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

AWAY = torch.device("meta")  # the one device that autograd knows without hardware; nothing here is without numbers
CROSSING = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_", "_local_scalar_dense"}
"""Operations that take tensors of both places on a GPU, too."""


class Away(Tensor):
    """A tensor elsewhere."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Away":
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=AWAY
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *args: object, **options: object) -> Any:
        raise TypeError("can't convert a tensor that lies elsewhere to numpy; copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Watching(TorchDispatchMode):
    """Sees what is made on, or sent to, the device by its name."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple, kwargs: dict) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [leaf for leaf in given if not isinstance(leaf, Away) and leaf.ndim]
    name, device = func.overloadpacket.__name__, kwargs.get("device")
    away = len(here) < len(given) and any(isinstance(leaf, Away) for leaf in given)
    if away and here and name not in CROSSING:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got some of both places")
    if name.startswith("index") and given and not isinstance(given[0], Away) and away and name in CROSSING:
        raise RuntimeError(f"indices should be on the CPU, as the indexed tensor is, but {func} got some elsewhere")
    lands = AWAY if away else None
    if name == "copy_":
        lands = AWAY if isinstance(args[0], Away) else None
    if device is not None:
        lands = AWAY if torch.device(device).type == AWAY.type else None
        kwargs = {**kwargs, "device": torch.device("cpu")}
        if lands is not None and kwargs.get("generator") is not None:
            raise RuntimeError("Expected a generator of the device, found one of the CPU")
    bare, named = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Away) else leaf, (args, kwargs))
    made = func(*bare, **named)
    own = {id(leaf.inner): leaf for leaf in given if isinstance(leaf, Away)}  # in place: the very tensor comes back

    def placed(leaf: Any) -> Any:
        return (
            leaf if not isinstance(leaf, Tensor) or lands is None else own[id(leaf)] if id(leaf) in own else Away(leaf)
        )

    return tree_map(placed, made)


class _Literals(TorchFunctionMode):
    """`torch.tensor(numbers, device=...)` fills the tensor out of sight of the mode below."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == AWAY.type:
            kwargs.pop("device")
            return func(*args, **kwargs).to(AWAY)
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """While it lasts, tensors can be made on `AWAY` and sent there."""
    with _Literals(), _Watching():
        yield


def sent(model: nn.Module) -> nn.Module:
    """The model with its parameters and buffers elsewhere, tied ones still tied; changed in place."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, value in table.items():
                if value is None:
                    continue
                if id(value) not in moved:
                    there = Away(value.detach())
                    is_parameter = isinstance(value, nn.Parameter)
                    moved[id(value)] = nn.Parameter(there, value.requires_grad) if is_parameter else there
                table[key] = moved[id(value)]
    return model
