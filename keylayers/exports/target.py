"""What an export is: files for another tool, handed out only if that tool would select exactly the asked layers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import nn

from keylayers.errors import BadInput, BadSelection
from keylayers.exports import get
from keylayers.files import explained
from keylayers.layers.layer import Layer
from keylayers.layers.model_versions import REMAINDER, Remainder
from keylayers.layers.structure import first_names, parameters_of
from keylayers.scores.scores import LayerScores
from keylayers.scores.selection import Selection
from keylayers.settings import Count, Positive, Settings

Unit = Literal["layers", "parameters"]


class CannotExpress(BadSelection):
    """A selection that a target's configuration has no words for; `nearest` is what it could say instead."""

    def __init__(self, reason: str, nearest: Selection | None = None) -> None:
        super().__init__(reason)
        self.nearest = nearest


@dataclass(frozen=True)
class ExportSettings(Settings):
    """What a configuration says beside the layers."""

    model: str = "MODEL"
    """The base model as the other tool should name it."""
    tuned: str = "TUNED"
    """The tuned model, where a target takes layers from one."""
    remainder: Remainder = REMAINDER
    """Whose is there what no scored layer holds (norms, embeddings)."""
    rank: Count = 16
    alpha: Positive = 32.0
    """The update is (alpha / rank) * B @ A."""
    ranks: Mapping[str, int] | None = None
    """Layer name -> rank, where ranks differ; alpha / rank stays the same."""
    scores: LayerScores | None = field(default=None, repr=False)
    """The ranking behind the selection, for targets that store one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(rank < 1 for rank in (self.ranks or {}).values()):
            raise BadInput(f"ranks {dict(self.ranks or {})}: expected at least 1, for every layer.")


class Adapter(NamedTuple):
    """Size and weight of one layer's LoRA."""

    rank: int
    scale: float
    """alpha / rank."""


@dataclass(frozen=True)
class Target:
    """One tool that can be told which layers to act on."""

    name: str
    unit: Unit
    """What its rule selects: layers by name, or single parameters by name."""
    render: Callable[[nn.Module, Selection, ExportSettings], dict[str, str]]
    """File name -> text. Raises CannotExpress, with the reason, for what the tool has no words for."""
    read_back: Callable[[nn.Module, Mapping[str, str]], set[str]]
    """What the tool would select in this model, given these files: its own rule, nothing of `render` reused."""
    nearest: Callable[[nn.Module, Selection], Selection | None]
    """The selection closest to the asked one that the tool can express; None where there is none."""
    usage: str
    """What to do with the files."""
    adapters: Callable[[nn.Module, Mapping[str, str]], dict[str, Adapter]] | None = None
    """For LoRA: what `read_back` finds, with the rank and scale each layer would get."""
    merges: bool = False
    """Whether it puts a model together from a base and a tuned one."""

    def matched(self, model: nn.Module, files: Mapping[str, str]) -> tuple[set[str], dict[str, Adapter]]:
        """What the tool would select in this model, given these files, and the adapters it would put there.

        Raises:
            CannotExpress: for files that do not say exactly which. BadInput: for files that the tool cannot read.
        """
        with explained(f"{self.name} cannot read {', '.join(files)}", "export again"):
            adapters = self.adapters(model, files) if self.adapters is not None else {}
            return set(adapters) if self.adapters is not None else self.read_back(model, files), adapters


@dataclass(frozen=True)
class Export:
    """Verified files for another tool."""

    target: str
    files: Mapping[str, str]
    """File name -> text."""
    selection: Selection
    matched: tuple[str, ...]
    """What the target's own rule selected when it read the files: layers or parameters, by unwrapped name, sorted."""
    unit: Unit
    usage: str
    remainder: Remainder | None = None
    """Of a merge: whose is what no scored layer holds."""
    beyond: int = 0
    """How many parameters that is."""

    def __str__(self) -> str:
        """What matched, in one line: `37/224 layers, 11/32 blocks, 4.1 % of the parameters of all layers`."""
        chosen, matched, said = self.selection, len(self.matched), ""
        if self.remainder and self.beyond:
            matched -= self.beyond if self.remainder == "tuned" else 0
            said = f"; the {self.beyond} that no scored layer holds come from the {self.remainder} model"
        blocks, among = _blocks(chosen.chosen), _blocks(chosen.layers)
        return (
            f"{self.target}: {len(chosen)}/{len(chosen.layers)} layers, {len(blocks)}/{len(among)} blocks, "
            f"{chosen.share_of_parameters:.1%} of the layers' parameters; "
            f"its own rule matched exactly these ({matched} {self.unit}){said}"
        )


def export(model: nn.Module, selection: Selection, to: str, settings: ExportSettings | None = None) -> Export:
    """The selection as files for another tool, read back by that tool's own matching rule on this model.

    The model may be on the meta device and is left as it is.

    Raises:
        UnknownName: for an unknown target.
        BadInput: for ranks of layers that are none of the selection's candidates, or a model that carries LoRA already.
        BadSelection: if a selected layer is not in this model, or the selection is empty (tools read that as "all").
        CannotExpress: if the target has no words for the selection, or would match more or less than asked; names the
            nearest selection it can express and what that costs.
    """
    from keylayers.exports.nearest import nearest_to  # it exports what it proposes

    target, settings = get(to), settings or ExportSettings()
    _require_present(model, selection)
    _require_known(settings.ranks or {}, selection)
    try:
        return verified(model, selection, target, settings)
    except CannotExpress as problem:
        nearest, cost = nearest_to(model, selection, target, settings)
        raise CannotExpress(f"{problem} {cost}", nearest) from problem


def verified(model: nn.Module, selection: Selection, target: Target, settings: ExportSettings) -> Export:
    """The export, if the target's own rule finds in it exactly the asked layers. Raises CannotExpress otherwise."""
    if tied := [layer for layer in selection.chosen if layer.tied_to is not None]:
        raise CannotExpress(
            f"{tied[0].name} shares its weight with {tied[0].tied_to}, so acting on it changes both places."
        )
    files = target.render(model, selection, settings)
    found, adapters = target.matched(model, files)
    wanted, rest = _wanted(selection, target.unit), set[str]()
    if target.merges:
        rest = _unscored(model, selection)
        wanted |= rest if settings.remainder == "tuned" else set()
    if found != wanted:
        raise CannotExpress(f"{target.name} would select other {target.unit} than asked: {_difference(wanted, found)}.")
    for name, adapter in adapters.items():
        rank, scale = (settings.ranks or {}).get(name, settings.rank), settings.alpha / settings.rank
        if adapter.rank != rank or not math.isclose(adapter.scale, scale, rel_tol=1e-6):
            raise CannotExpress(
                f"{target.name} would give {name} rank {adapter.rank} and alpha / rank {adapter.scale:g}, "
                f"not {rank} and {scale:g} as asked."
            )
    whose = settings.remainder if target.merges else None
    return Export(
        target.name,
        MappingProxyType(files),
        selection,
        tuple(sorted(found)),
        target.unit,
        target.usage,
        whose,
        len(rest),
    )


def _require_present(model: nn.Module, selection: Selection) -> None:
    if not len(selection):
        raise BadSelection("no layer is selected, and other tools read an empty list as all layers; select some.")
    if bare := next((layer.name for layer in selection.chosen if not layer.parameters), None):
        raise BadSelection(
            f"{bare} is a skip connection without a weight, and other tools choose weights; use `keylayers cleanse`, "
            "or select at another granularity."
        )
    present = parameters_of(model)
    absent = [
        layer.name
        for layer in selection.chosen
        if any(name.partition("[")[0] not in present for name in layer.parameters)
    ]
    if absent:
        raise BadSelection(
            f"{len(absent)} of the {len(selection)} selected layers are not in {type(model).__name__}, first "
            f"{', '.join(absent[:3])}: the selection is of another model. Name the one that was scored, or score this."
        )


def _require_known(ranks: Mapping[str, int], selection: Selection) -> None:
    """Ranks of layers that were not chosen are passed over; of layers that do not exist they are a mistake."""
    foreign = sorted(ranks.keys() - {layer.name for layer in selection.layers})
    if foreign:
        raise BadInput(
            f"ranks are given for {len(foreign)} layers that are none of the {len(selection.layers)} that could have "
            f"been selected, first {foreign[0]!r}; leave them out."
        )


def _wanted(selection: Selection, unit: Unit) -> set[str]:
    if unit == "layers":
        return set(selection.names)
    return {name for layer in selection.chosen for name in layer.parameters}


def scored_tensors(selection: Selection) -> set[str]:
    """The tensors that scored layers hold, or parts of them, as a checkpoint names them."""
    return {name.partition("[")[0] for layer in selection.layers for name in layer.stored}


def _unscored(model: nn.Module, selection: Selection) -> set[str]:
    """The parameters that no scored layer holds, tied ones under their first name."""
    first = first_names(model)
    return {name for name in parameters_of(model) if first[name] == name} - scored_tensors(selection)


def _difference(wanted: set[str], found: set[str]) -> str:
    parts = []
    for names, word in ((wanted - found, "missing"), (found - wanted, "not asked for")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {word} ({shown})")
    return "; ".join(parts)


def _blocks(layers: tuple[Layer, ...]) -> set[int]:
    return {layer.block for layer in layers if layer.block is not None}
