"""What a target can express instead of a selection it has no words for: tried out, then proposed with its cost."""

from dataclasses import replace

from torch import nn

from keylayers.errors import BadSelection
from keylayers.exports.target import CannotExpress, ExportSettings, Target, verified
from keylayers.layers.layer import Layer
from keylayers.layers.structure import logical_shape, parameters_of
from keylayers.scores.selection import Selection


def nearest_to(
    model: nn.Module, asked: Selection, target: Target, settings: ExportSettings
) -> tuple[Selection | None, str]:
    """The nearest selection that this target was found to express here, and in words what it costs."""
    untied = _untied(asked)
    for proposed in (untied, target.nearest(model, untied) if untied is not None else None):
        if proposed is None or (proposed is asked and not settings.ranks):
            continue
        try:
            verified(model, proposed, target, replace(settings, ranks=None))
        except CannotExpress:
            continue
        return proposed, _cost(model, asked, proposed)
    return None, "Nothing near it can be expressed there; ask for another selection, or for another target."


def _untied(asked: Selection) -> Selection | None:
    """The selection without layers that share their weight; itself where there are none, None where nothing is left."""
    names = [layer.name for layer in asked.chosen if layer.tied_to is None]
    if len(names) == len(asked):
        return asked
    try:
        kept = Selection.of(asked.layers, names=names, allow_total=True)
    except BadSelection:
        return None
    return Selection(kept.layers, kept.mask, f"({asked.policy}) without tied layers", {}, allow_total=True)


def _cost(model: nn.Module, asked: Selection, nearest: Selection) -> str:
    """What the nearest expressible selection adds and leaves out, in parameters of the asked one."""
    whole = {name.partition("[")[0] for one in (asked, nearest) for name in _sliced(one.chosen)}
    have, offered = _scalars(model, asked.chosen, whole), _scalars(model, nearest.chosen, whole)
    more = sum(offered[name] for name in offered.keys() - have.keys())
    less = sum(have[name] for name in have.keys() - offered.keys())
    if set(nearest.names) == set(asked.names):
        return "The same layers can be expressed there at one rank: leave the ranks out, or choose another target."
    size = max(sum(have.values()), 1)
    parts = [f"{sign}{count / size:.2%}" for sign, count in (("+", more), ("-", less)) if count]
    changed = f"{' and '.join(parts)} of the parameters asked for" if parts else "the same parameters"
    return (
        f"The nearest it can express is {_shortened(nearest.policy)}: {len(nearest)} layers, {changed}. "
        "Ask for that (`nearest`), for another selection, or for another target."
    )


def _shortened(policy: str) -> str:
    """A choice by names can be as long as the model is deep."""
    return policy if len(policy) <= 80 else f"{policy[:77]}..."


def _sliced(layers: tuple[Layer, ...]) -> list[str]:
    return [name for layer in layers for name in layer.parameters if "[" in name]


def _scalars(model: nn.Module, layers: tuple[Layer, ...], sliced: set[str]) -> dict[str, int]:
    """Parameter, or slice of one that either selection takes in slices -> number of scalars."""
    present = parameters_of(model)
    counts = {}
    for name in {name for layer in layers for name in layer.parameters}:
        owner = name.partition("[")[0]
        shape = logical_shape(present[owner])
        size = 1
        for extent in shape:
            size *= extent
        if owner not in sliced:
            counts[name] = size
        elif "[" in name:
            counts[name] = size // shape[0]
        else:
            counts |= {f"{name}[{row}]": size // shape[0] for row in range(shape[0])}
    return counts
