"""Two versions of one model: which tensors they share, which of them differ, and what has no counterpart.

Scoring, taking back and exporting compare a base and a tuned model here, so that all do it by the same rules: a tied
tensor counts once, buffers that no weight file decides are passed over, numbers are compared in the coarser of the two
precisions, and of tables with unequal numbers of rows (a vocabulary that grew) the shared rows count.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.structure import first_names, parameters_of, unwrap, walk
from keylayers.layers.tensors import TensorSource

Remainder = Literal["tuned", "base"]
REMAINDER: Remainder = "tuned"
"""Whose tensors stay where no scored layer holds them (norms, embeddings), for whatever is put together of two models.
The tuned ones unless asked: no score says that they can go, scores are measured with them in place, and tokens that
tuning added need theirs."""


def remainder_named(name: str) -> Remainder:
    """The name itself. Raises UnknownName for another than tuned and base."""
    if name not in get_args(Remainder):
        raise UnknownName("remainder", name, get_args(Remainder))
    return cast(Remainder, name)


@dataclass(frozen=True)
class Versions:
    """The tensors of a base and of a tuned model under common names."""

    base: TensorSource
    tuned: TensorSource
    rows: Mapping[str, int]
    """Table -> how many rows both have, where one has more."""

    def compared(self, name: str) -> tuple[bool, str | None]:
        """Whether tuning changed the tensor, beyond what rounding to the coarser precision does to it; and that
        precision, if the base's tensor had to be rounded to it."""
        base, tuned = self._shared(name)
        before, after = alike(base, tuned)
        rounded = before.dtype != base.dtype and not torch.equal(before.to(base.dtype), base)
        return not torch.equal(before, after), str(before.dtype).removeprefix("torch.") if rounded else None

    def change(self, name: str) -> Tensor:
        """tuned - base on the base's device, at least in float32; 0 in rows that the tuned model lacks."""
        return self._filled(change_of(*self._shared(name)), name)

    def change_of_row(self, name: str, index: int) -> Tensor:
        """The change of one slice of the first axis; no other slice is read."""
        return change_of(self.base.row(name, index), self.tuned.row(name, index))

    def notes(self) -> tuple[str, ...]:
        """What was left out of the comparison, in words."""
        if not self.rows:
            return ()
        name, shared = next(iter(self.rows.items()))
        first, second = self.base.shapes[name][0], self.tuned.shapes[name][0]
        return (
            f"{' and '.join(self.rows)}: the tuned model has {second} rows, the base {first} (another vocabulary); the "
            f"first {shared} are compared, the other {abs(second - first)} count in no score",
        )

    def _shared(self, name: str) -> tuple[Tensor, Tensor]:
        base, tuned, rows = self.base[name](), self.tuned[name](), self.rows.get(name)
        return (base, tuned) if rows is None else (base[:rows], tuned[:rows])

    def _filled(self, change: Tensor, name: str) -> Tensor:
        missing = self.base.shapes[name][0] - len(change) if name in self.rows else 0
        return torch.cat([change, change.new_zeros(missing, *change.shape[1:])]) if missing else change


def versions(base: TensorSource, tuned: TensorSource, model: nn.Module | None = None) -> Versions:
    """The two as versions of one model. The base model, on the meta device if need be, says which of its tensors are
    tied, which are tables with a row per token, and which stored tensors it does not read.

    Raises:
        BadInput: naming what differs, if they are not versions of one model; if one is quantised, or holds different
            values for what is one tensor in the model.
    """
    for one, other in ((base, tuned), (tuned, base)):
        _refuse_packed(one, other)
    base, tuned = comparable(base, model), comparable(tuned, model)
    tables = set() if model is None else _tables(model)
    rows = {
        name: min(base.shapes[name][0], tuned.shapes[name][0])
        for name in base
        if name in tables and name in tuned and _grown(base.shapes[name], tuned.shapes[name])
    }
    _check_same_tensors(base, tuned, rows)
    return Versions(base, tuned, rows)


def comparable(source: TensorSource, model: nn.Module | None = None) -> TensorSource:
    """The real numbers that the model reads from a checkpoint, each tied tensor once, under its first name there.

    Raises:
        BadInput: if the checkpoint holds different values for tensors that are tied in the model.
    """
    first = {} if model is None else first_names(model)
    unread = _unread(model, source.keys() - first.keys()) if model is not None else set()
    chosen: dict[str, str] = {}
    for name in source:
        if name in source.counters or name in unread:
            continue
        other = chosen.setdefault(first.get(name, name), name)
        if other != name and not torch.equal(*alike(source[other](), source[name]())):
            raise BadInput(
                f"{source.origin} holds different values for {other} and {name}, which are one tensor in the base "
                "model; set tie_word_embeddings to false in the base's config.json."
            )
    return source.renamed(chosen)


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Of two precisions the one whose numbers lie further apart."""
    return max((one, other), key=lambda dtype: torch.finfo(dtype).eps)


def alike(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the coarser of their precisions, on the first's device: what saving in it did to one is done to both."""
    common = coarser(base.dtype, tuned.dtype)
    return base.to(common), tuned.to(base.device).to(common)


def change_of(base: Tensor, tuned: Tensor) -> Tensor:
    """tuned - base in the coarser of their precisions, kept in float32 or wider, on the base's device."""
    before, after = alike(base, tuned)
    wide = torch.promote_types(before.dtype, torch.float32)
    return after.to(wide) - before.to(wide)


def _refuse_packed(source: TensorSource, other: TensorSource) -> None:
    """Raises BadInput if weights of the other are stored in few bits here, in their place or under names beside it."""
    packed = next((name for name in source if name in source.counters and _is_real(other, name)), None)
    if packed is None:
        marks = (".qweight", ".weight.absmax", ".weight_scale", ".weight_scale_inv", ".SCB", "_blocks")
        packed = next((name for name in source if name.endswith(marks) and name not in other), None)
    if packed is not None:
        raise BadInput(
            f"{source.origin} is quantised (see {packed}), so that its tensors are not its weights; give the "
            "checkpoint before quantisation."
        )


def _is_real(source: TensorSource, name: str) -> bool:
    return name in source and name not in source.counters


def _unread(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Stored names that the model passes over: buffers it computes itself, and what transformers is told to ignore."""
    network: Any = unwrap(model)
    known = [rf"(^|\.){re.escape(key)}$" for key in ("rotary_emb.inv_freq", "attn.masked_bias")]
    patterns = [*known, *(getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ())]
    computed = {f"{node.name}.{key}".removeprefix(".") for node in walk(model) for key in node.inner._buffers}
    return {name for name in names if name in computed or any(re.search(pattern, name) for pattern in patterns)}


def _tables(model: nn.Module) -> set[str]:
    """First names of what has a row per token: embeddings, and the output head with its bias."""
    network: Any = unwrap(model)
    head = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    owners = {id(value) for value in head.parameters()} if isinstance(head, nn.Module) else set()
    owners |= {id(node.inner.weight) for node in walk(model) if isinstance(node.inner, nn.Embedding)}
    first = first_names(model)
    return {first[name] for name, value in parameters_of(model).items() if id(value) in owners}


def _grown(base: tuple[int, ...], tuned: tuple[int, ...]) -> bool:
    return base != tuned and len(base) == len(tuned) and base[1:] == tuned[1:]


def _check_same_tensors(base: TensorSource, tuned: TensorSource, rows: Mapping[str, int]) -> None:
    """Raises BadInput, naming the first differences, unless both hold the same names with the same shapes."""
    only_base, only_tuned = sorted(base.keys() - tuned.keys()), sorted(tuned.keys() - base.keys())
    shapes = [name for name in base if name in tuned and name not in rows and base.shapes[name] != tuned.shapes[name]]
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
