"""Tensors by name, from memory or from safetensors files one at a time: a checkpoint pair needs no second model."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.files import check_regular, explained
from keylayers.layers.structure import canonical_name, first_names, is_packed, tensors_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


class TensorSource(Mapping[str, Callable[[], Tensor]]):
    """Name -> a function that loads the tensor; nothing is read before it is called."""

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], Tensor]],
        shapes: Mapping[str, tuple[int, ...]],
        origin: str,
        counters: Iterable[str] = (),
    ) -> None:
        self._loaders, self.shapes, self.origin = dict(loaders), dict(shapes), origin
        self.counters = frozenset(counters)
        """Names of tensors that are no real numbers: batch counters, position ids, and weights packed in few bits."""

    def __getitem__(self, name: str) -> Callable[[], Tensor]:
        return self._loaders[name]

    def row(self, name: str, index: int) -> Tensor:
        """One slice of the first axis; of a tensor on disk nothing else is read."""
        load = self._loaders[name]
        return load.row(index) if isinstance(load, _OnDisk) else load()[index]

    def renamed(self, names: Mapping[str, str]) -> "TensorSource":
        """The tensors that `names` (wanted -> own name) asks for, under the wanted names."""
        return TensorSource(
            {wanted: self._loaders[name] for wanted, name in names.items()},
            {wanted: self.shapes[name] for wanted, name in names.items()},
            self.origin,
            (wanted for wanted, name in names.items() if name in self.counters),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


def tensors_in_memory(model: nn.Module, origin: str = "a model in memory") -> TensorSource:
    """The parameters and lasting buffers of a model under their unwrapped names, a tied tensor under its first name.

    Raises:
        BadInput: if the model is quantised, so that its tensors are not its weights.
    """
    first = first_names(model)
    tensors = {name: value for name, value in tensors_of(model).items() if first[name] == name}
    packed = [name for name, value in tensors.items() if is_packed(value)]
    if packed:
        raise BadInput(
            f"{origin} is quantised ({packed[0]} is stored as {str(tensors[packed[0]].dtype).removeprefix('torch.')}); "
            "load it without quantisation to compare weights, or use an adapter."
        )
    return TensorSource(
        {name: value.detach for name, value in tensors.items()},
        {name: tuple(value.shape) for name, value in tensors.items()},
        origin,
    )


def tensors_on_disk(path: str | Path, *, allow_pickle: bool = False) -> TensorSource:
    """The tensors of a weights file or of a checkpoint folder, sharded or not; safetensors are read one at a time.

    Pickles, where they are allowed, are read for tensors and plain values only, a whole file at a time.

    Raises:
        BadInput: if there is none, a shard is missing or damaged, or only pickles are there and not allowed.
    """
    path = Path(path)
    loaders: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    counters: set[str] = set()
    for file in _files(path, allow_pickle):
        if file.suffix in PICKLES:
            for name, tensor in unpickled(file).items():
                place = canonical_name(name)
                shapes[place], loaders[place] = tuple(tensor.shape), tensor.detach
                if not tensor.is_floating_point():
                    counters.add(place)
            continue
        with opened(file) as handle:
            for name in handle.keys():  # noqa: SIM118  (safe_open is no mapping)
                place, stored = canonical_name(name), handle.get_slice(name)
                shapes[place], loaders[place] = tuple(stored.get_shape()), _OnDisk(file, name)
                if stored.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    counters.add(place)
    return TensorSource(loaders, shapes, str(path), counters)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file. Raises BadInput where it is damaged, and where reading from it fails."""
    remedies = "copy it again", "name another checkpoint"
    with (
        explained(f"{file} is not a whole safetensors file", *remedies),
        safe_open(check_regular(file), "pt") as handle,
    ):
        yield handle


@dataclass(frozen=True)
class _OnDisk:
    """A tensor of a safetensors file, read when called."""

    file: Path
    name: str

    def __call__(self) -> Tensor:
        with opened(self.file) as handle:
            return handle.get_tensor(self.name)

    def row(self, index: int) -> Tensor:
        with opened(self.file) as handle:
            return handle.get_slice(self.name)[index].clone()  # a view of the file would count, and stay, as all of it


def unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, also of one that holds them under `state_dict`; code in it is refused, not run.

    Raises:
        BadInput: for what cannot be read so.
    """
    import torch

    with explained(f"{file} cannot be read as weights", "convert it to safetensors where you trust it"):
        stored = torch.load(check_regular(file), map_location="cpu", weights_only=True)
        stored = stored.get("state_dict", stored)
        return {name: value for name, value in stored.items() if isinstance(value, Tensor)}


def _files(path: Path, allow_pickle: bool) -> list[Path]:
    """The weights files of a checkpoint, those first that transformers would load."""
    if path.is_file():
        if not allow_pickle:
            refuse_pickles([path])
        return [path]
    names = [(SINGLE, INDEX), *([("pytorch_model.bin", "pytorch_model.bin.index.json")] if allow_pickle else [])]
    for single, index in names:
        if (path / single).is_file():
            return [path / single]
        if (path / index).is_file():
            files = [path / shard for shard in shards(path / index)]
            if not allow_pickle:
                refuse_pickles(files)
            return files
    files = sorted(path.glob("*")) if path.is_dir() else []
    if not allow_pickle:
        refuse_pickles(files)
    if path.suffix in {".safetensors", *PICKLES} and not os.path.exists(path):
        raise BadInput(f"there is no file {path}; give the safetensors of the weights.")
    raise BadInput(f"no {SINGLE} or {INDEX} in {path}; give a checkpoint folder as save_pretrained writes it.")


def shards(index: Path) -> list[str]:
    """The files in which the shards of a checkpoint lie, beside their index.

    Raises:
        BadInput: for an index that lists none, or files that are not beside it.
    """
    names = shard_names(index)
    if absent := [name for name in names if Path(name).name != name or not os.path.isfile(index.with_name(name))]:
        raise BadInput(f"{index} names files that are not in its folder: {', '.join(absent[:5])}", "copy those as well")
    return names


def shard_names(index: Path) -> list[str]:
    """The names of a checkpoint's shards as its index has them. Raises BadInput for an index that lists none."""
    check_regular(index)
    with explained(f"{index} does not list shards under 'weight_map'", "copy it again"):
        return sorted({str(Path(name)) for name in json.loads(index.read_text())["weight_map"].values()})


def refuse_pickles(files: Iterable[Path]) -> None:
    """Raises BadInput if a checkpoint is there only as a pickle, which can run code when opened."""
    pickles = sorted(str(file) for file in files if file.suffix in PICKLES)
    if pickles:
        raise BadInput(
            f"{pickles[0]} is a pickle, which can run code when it is opened",
            "convert it to safetensors (load it where you trust it, then model.save_pretrained(folder))",
            "allow it with `allow_pickle`",
        )
