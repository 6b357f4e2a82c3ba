"""Tensors by name, from memory or from safetensors files one at a time: a checkpoint pair needs no second model."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.structure import canonical_name, first_names, tensors_of

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
        """Names of tensors that are no real numbers (batch counters, position ids), which no tuning changes."""

    def __getitem__(self, name: str) -> Callable[[], Tensor]:
        return self._loaders[name]

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
    packed = [name for name, value in tensors.items() if not value.is_floating_point()]
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


def comparable(source: TensorSource, first: Mapping[str, str]) -> TensorSource:
    """The real numbers of a checkpoint, each tied tensor once under the name that `first` gives it (see first_names).

    Raises:
        BadInput: if the checkpoint holds different values for tensors that are tied in the model.
    """
    chosen: dict[str, str] = {}
    for name in source:
        if name in source.counters:
            continue
        other = chosen.setdefault(first.get(name, name), name)
        if other != name and not equal_tensors(source[other](), source[name]()):
            raise BadInput(
                f"{source.origin} holds different values for {other} and {name}, which are one tensor in the base "
                "model; set tie_word_embeddings to false in the base's config.json."
            )
    return TensorSource(
        {wanted: source[name] for wanted, name in chosen.items()},
        {wanted: source.shapes[name] for wanted, name in chosen.items()},
        source.origin,
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
                    shapes[place], loaders[place] = tuple(stored.get_shape()), _loader(file, name)
                    if not stored.get_dtype().startswith(("F", "BF")):
                        counters.add(place)
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"{file} is not a whole safetensors file ({error}); copy it again or name another checkpoint."
            ) from error
    return TensorSource(loaders, shapes, str(path), counters)


def _loader(file: Path, name: str) -> Callable[[], Tensor]:
    def load() -> Tensor:
        with safe_open(file, framework="pt") as handle:
            return handle.get_tensor(name)

    return load


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


def check_same_tensors(base: TensorSource, tuned: TensorSource) -> None:
    """Raises BadInput, naming the first differences, unless both hold the same names with the same shapes."""
    only_base, only_tuned = sorted(base.keys() - tuned.keys()), sorted(tuned.keys() - base.keys())
    shapes = [name for name in base if name in tuned and base.shapes[name] != tuned.shapes[name]]
    if not (only_base or only_tuned or shapes):
        return
    parts = [
        f"{len(only_base)} only in the base ({', '.join(only_base[:3])})" if only_base else "",
        f"{len(only_tuned)} only in the tuned ({', '.join(only_tuned[:3])})" if only_tuned else "",
        f"{len(shapes)} of another shape ({shapes[0]}: {base.shapes[shapes[0]]} and {tuned.shapes[shapes[0]]})"
        if shapes
        else "",
    ]
    raise BadInput(
        f"{base.origin} and {tuned.origin} are not two versions of one model: of their tensors "
        f"{'; '.join(part for part in parts if part)}. Give the checkpoint the tuned model was trained from."
    )


def equal_tensors(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same bits' worth of numbers, whatever their dtype."""
    return (
        torch.equal(a, b)
        if a.dtype == b.dtype and a.device == b.device
        else torch.equal(a.double().cpu(), b.double().cpu())
    )
