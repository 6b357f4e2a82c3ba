"""Tensors by name, from memory or from safetensors files one at a time: a checkpoint pair needs no second model."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from keylayers.errors import BadInput
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


def tensors_on_disk(path: str | Path) -> TensorSource:
    """The tensors of a safetensors file or of a checkpoint folder, sharded or not, read one at a time.

    Raises:
        BadInput: if there is none, a shard is missing or damaged, or only pickles are there.
    """
    path = Path(path)
    loaders: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    counters: set[str] = set()
    for file in _files(path):
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118  (safe_open is no mapping)
                    place, stored = canonical_name(name), handle.get_slice(name)
                    shapes[place], loaders[place] = tuple(stored.get_shape()), _OnDisk(file, name)
                    if stored.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                        counters.add(place)
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"{file} is not a whole safetensors file ({error}); copy it again or name another checkpoint."
            ) from error
    return TensorSource(loaders, shapes, str(path), counters)


@dataclass(frozen=True)
class _OnDisk:
    """A tensor of a safetensors file, read when called."""

    file: Path
    name: str

    def __call__(self) -> Tensor:
        with safe_open(self.file, framework="pt") as handle:
            return handle.get_tensor(self.name)

    def row(self, index: int) -> Tensor:
        with safe_open(self.file, framework="pt") as handle:
            return handle.get_slice(self.name)[index]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        refuse_pickles([path])
        return [path]
    if (path / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))
            unsafe = [shard for shard in shards if Path(shard).name != shard]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadInput(f"{path / INDEX} does not list shards under 'weight_map' ({error}).") from error
        missing = [shard for shard in shards if not (path / shard).is_file()]
        if unsafe or missing:
            raise BadInput(
                f"{path / INDEX} names files that are not in its folder: {', '.join((unsafe or missing)[:5])}."
            )
        return [path / shard for shard in shards]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    refuse_pickles(path.glob("*") if path.is_dir() else [])
    if path.suffix == ".safetensors" and not path.exists():
        raise BadInput(f"there is no file {path}; give the safetensors of the weights.")
    raise BadInput(f"no {SINGLE} or {INDEX} in {path}; give a checkpoint folder as save_pretrained writes it.")


def refuse_pickles(files: Iterable[Path]) -> None:
    """Raises BadInput if a checkpoint is there only as a pickle, which can run code when opened."""
    pickles = sorted(str(file) for file in files if file.suffix in PICKLES)
    if pickles:
        raise BadInput(
            f"{pickles[0]} is a pickle, which can run code when it is opened. Convert it to safetensors "
            "(load it where you trust it, then model.save_pretrained(folder)), or allow it with --allow-pickle."
        )
