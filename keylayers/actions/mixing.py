"""What a checkpoint is made of when some layers keep their change and others go back: for each tensor, from whom."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.deltas import Delta
from keylayers.layers.layer import Layer
from keylayers.layers.model_versions import REMAINDER, Remainder, Versions, versions
from keylayers.layers.structure import first_names
from keylayers.layers.tensors import TensorSource, tensors_on_disk
from keylayers.models.adapters import deltas_of_adapter, is_adapter
from keylayers.models.loading import load_model, load_shape
from keylayers.models.stored import places_of
from keylayers.models.tuned import dtype_stored, refuse_quantised
from keylayers.scores.selection import Selection


@dataclass(frozen=True)
class Mixture:
    """A checkpoint to be written, tensor by tensor."""

    tensors: Mapping[str, Callable[[], Tensor]]
    """Stored name -> what loads it."""
    tuned: int
    """How many of them hold what tuning made; the others are the base's."""
    files: tuple[Path, ...]
    """Folders whose other files (configuration, tokenizer) belong to it, the later ones first."""
    remainder: str
    """What no scored layer holds, and whose it is, in words."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scope:
    """Which of the model's tensors are scored, and which of those keep their change."""

    scored: frozenset[str]
    chosen: frozenset[str]
    slices: Mapping[str, Mapping[int, bool]]
    """Tensor -> slice of it that is scored by itself -> whether that keeps its change."""

    @classmethod
    def of(cls, selection: Selection) -> "_Scope":
        scored, chosen = _held(selection.layers), _held(selection.chosen)
        slices: dict[str, dict[int, bool]] = defaultdict(dict)
        for name in scored:
            whole, bracket, index = name.partition("[")
            if bracket:
                slices[whole][int(index.removesuffix("]"))] = name in chosen
        return cls(frozenset(scored), frozenset(chosen), slices)

    def keeps(self, place: str) -> bool | None:
        """Whether the tensor of the model, or the slice of one, keeps its change; None if no scored layer holds it."""
        names = {place, place.partition("[")[0]}
        return bool(names & self.chosen) if names & self.scored else None


def _held(layers: Iterable[Layer]) -> set[str]:
    return {name for layer in layers for name in layer.stored}


def mixture(base: Path, tuned: Path, selection: Selection, remainder: Remainder = REMAINDER) -> Mixture:
    """The tuned tensors (or slices of them) of the selected layers, the base's of the other scored layers, and of what
    no scored layer holds (norms, embeddings) those of `remainder`.

    The tuned model is a checkpoint folder or a LoRA adapter. Nothing is read of a checkpoint before it is written.

    Raises:
        BadInput: if they are not versions of one model, one is quantised, nothing was tuned, or the scored tensors are
            not among what is stored.
    """
    scope = _Scope.of(selection)
    if is_adapter(base):
        raise BadInput(f"{base} is a LoRA adapter, not a model; give its base model, and the adapter as `tuned`.")
    if is_adapter(tuned):
        return _with_adapter(base, tuned, selection, scope, remainder)
    if not tuned.is_dir():
        raise BadInput(f"no checkpoint folder at {tuned}; give the folder that save_pretrained wrote.")
    for folder in (base, tuned):
        if (folder / "config.json").is_file():
            refuse_quantised(folder)
    shape, stored = _shape(base), tensors_on_disk(tuned)
    both = versions(tensors_on_disk(base), stored, shape)
    if not any(both.compared(name)[0] for name in both.base):
        raise BadInput(f"{base} and {tuned} hold equal tensors: nothing was tuned, so nothing can be taken back.")
    places = _places(shape, stored, scope)
    first = {} if shape is None else first_names(shape)
    tensors: dict[str, Callable[[], Tensor]] = {}
    kept, rest = 0, []
    for name in stored:
        own, place = first.get(name, name), places[name]
        keeps, slices = scope.keeps(place), scope.slices.get(place)
        if keeps is None and not slices:
            rest += [name]
            keeps = remainder == "tuned"
        if own not in both.base:  # counters, and buffers that the model does not read
            keeps = True
        kept += keeps is not False
        if slices:
            tensors[name] = partial(_sliced, both, own, slices, remainder == "tuned")
        else:
            tensors[name] = stored[name] if keeps else partial(_base_tensor, both, own)
    return Mixture(tensors, kept, (tuned,), _said(rest, remainder), both.notes())


def _base_tensor(both: Versions, name: str) -> Tensor:
    """The base's tensor; rows that only the tuned one has, of tokens that the base does not know, stay the tuned's."""
    tensor = both.base[name]()
    if name not in both.rows:
        return tensor
    shared = both.rows[name]
    return torch.cat([tensor[:shared], both.tuned[name]()[shared:].to(tensor.dtype)])


def _sliced(both: Versions, name: str, slices: Mapping[int, bool], others: bool) -> Tensor:
    """A stack with some slices of the tuned tensor and the others of the base's."""
    stack = both.base[name]().clone()
    for index in range(len(stack)):
        if slices.get(index, others):
            stack[index] = both.tuned.row(name, index)
    return stack


def _with_adapter(base: Path, adapter: Path, selection: Selection, scope: _Scope, remainder: Remainder) -> Mixture:
    """The base with the products of the selected layers added, as merging them would; the base is loaded for it."""
    if (base / "config.json").is_file():
        refuse_quantised(base)
    stored = tensors_on_disk(base)
    loaded = load_model(str(base), dtype=dtype_stored(stored), device="cpu")
    deltas = deltas_of_adapter(loaded.model, adapter, selection.layers)
    chosen, rest = set(selection.names), deltas.remainder
    changes = dict(rest) if remainder == "tuned" else dict[str, Delta]()
    for layer, change in zip(deltas.layers, deltas.changes, strict=True):
        changes |= change if layer.name in chosen else {}
    if alone := next((name for name, delta in changes.items() if _parts_ties(loaded.model, name, delta)), None):
        raise BadInput(
            f"adapter {adapter} changes {alone} alone, which is tied to another tensor, so that no checkpoint of this "
            "model can hold the change",
            *(["take `remainder=base`"] if alone in rest else []),
            "leave that layer out",
        )
    places = _places(_shape(base), stored, scope)
    if absent := sorted(name for name in changes if name not in stored):
        whole = absent[0].partition("[")[0]
        raise BadInput(
            f"{base} does not store {absent[0]}{' by itself' if whole in stored else ''}, which adapter {adapter} "
            "changes; merge it first (peft's merge_and_unload, then save_pretrained) and give that checkpoint."
        )
    tensors = {
        name: partial(_merged, load, changes[name]) if name in changes else load for name, load in stored.items()
    }
    unscored = [name for name in stored if scope.keeps(places[name]) is None and name in rest]
    return Mixture(tensors, len(changes), (adapter, base), _said(unscored, remainder), deltas.notes)


def _merged(load: Callable[[], Tensor], delta: Delta) -> Tensor:
    tensor = load()
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return (tensor.to(wide) + delta.dense().to(wide)).to(tensor.dtype)


def _parts_ties(model: nn.Module, name: str, delta: Delta) -> bool:
    """Whether a change holds in one place of a tied tensor alone: the other would have to be stored apart."""
    first = first_names(model)
    places = [other for other, owner in first.items() if owner == first.get(name)]
    hooked = getattr(delta, "hooked", False)
    return len(places) > 1 and (delta.alone or hooked)


def _shape(base: Path) -> nn.Module | None:
    """The base without weights, which says what is tied and how stored names are spelled; None if it cannot be had."""
    if not (base / "config.json").is_file():
        return None
    try:
        return load_shape(str(base))
    except BadInput:  # code of its own, or no architecture that transformers knows: names are taken as they are
        return None


def _places(shape: nn.Module | None, stored: TensorSource, scope: _Scope) -> dict[str, str]:
    """Stored name -> the model's name for it. Raises BadInput if a scored tensor is not stored."""
    places = {name: name for name in stored} if shape is None else places_of(shape, stored)
    first = {} if shape is None else first_names(shape)
    places = {name: first.get(place, place) for name, place in places.items()}
    there = {*places.values(), *(place.partition("[")[0] for place in places.values())}
    if absent := sorted(name for name in scope.scored if not {name, name.partition("[")[0]} & there):
        raise BadInput(
            f"{stored.origin} does not hold {len(absent)} of the {len(scope.scored)} scored tensors, first "
            f"{absent[0]}; the scores are of another model or granularity, or the checkpoint names its tensors "
            "otherwise than the model does."
        )
    return places


def _said(names: Sequence[str], remainder: Remainder) -> str:
    """What the remainder is and whose, each kind of tensor once."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    if not kinds:
        return "every tensor belongs to a scored layer"
    shown = ", ".join(kinds[:6]) + (f" and {len(kinds) - 6} other kinds" if len(kinds) > 6 else "")
    return f"beyond the scored layers {len(names)} tensors are the {remainder} model's: {shown}"
