"""The kind of a layer and nothing else: the plain rival of a criterion that may only have told matrix types apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import nothing
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.roles import role_of, stand_ins
from keylayers.scores.scores import LayerScores
from keylayers.settings import Seed

TABLES: dict[str, tuple[str, ...]] = {
    "attention": ("attention", "cross_attention"),
    "mlp": ("mlp", "experts", "expert", "shared_experts"),
    "qv": ("attention.q", "attention.v"),
    "down": ("mlp.down", "experts.down", "shared_experts.down", "expert"),
}
"""Setting `first` -> roles that are critical: all attention; all mlp; what LoRA's paper adapts (Hu et al. 2021, 7.1);
the matrices that write what an mlp knows."""

SIZES = ("largest", "smallest")


@dataclass(frozen=True)
class TypeOnly(CriterionSettings):
    """Settings of `type_only`."""

    first: str = "largest"
    """Which kinds are critical: `largest` or `smallest` (by scalars per layer); `attention`, `mlp`, `qv` or `down`; or
    roles (`docs/transfer.md`), most critical first, joined by commas: `mlp.down,attention.v`. A place stands for its
    parts; other kinds follow, largest first."""
    seed: Seed = 0
    """Of the order inside a kind."""


def _fits(layers: Sequence[Layer], settings: TypeOnly, batches: int) -> None:
    if settings.first not in SIZES:
        _places(layers, settings.first)


@criterion(settings=TypeOnly, work=nothing, fits=_fits)
def score_type_only(evidence: Evidence, layers: Sequence[Layer], settings: TypeOnly) -> LayerScores:
    """Number of kinds ranked below a layer's own, plus a seeded number in [0, 1); needs the list of layers alone.

    Critical = of a kind that is trained by habit. Inside a kind nothing is known, and forward order would be knowledge
    of depth; so the order there is random. Kinds of equal rank by the setting go by size, then by first appearance.

    Raises:
        BadInput: for roles that no layer has.
    """
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    mean_size = {kind: np.mean([layer.size for layer in layers if layer.kind == kind]) for kind in kinds}
    sign = -1 if settings.first == "smallest" else 1
    place = dict.fromkeys(kinds, 0) if settings.first in SIZES else _places(layers, settings.first)
    ordered = sorted(kinds, key=lambda kind: (place[kind], -sign * mean_size[kind]))  # stable: first appearance
    below = {kind: len(kinds) - 1 - rank for rank, kind in enumerate(ordered)}
    drawn = np.random.default_rng(settings.seed).random(len(layers))
    values = np.array([below[layer.kind] for layer in layers]) + drawn
    return scored(evidence, layers, values, criterion="type_only", settings=settings)


def _places(layers: Sequence[Layer], asked: str) -> dict[str, int]:
    """Kind -> place of the first of the asked roles that it has; the number of asked roles where it has none."""
    wanted = TABLES.get(asked, tuple(role.strip() for role in asked.split(",")))
    together = asked in TABLES  # a table's roles are equally critical
    roles = {layer.kind: role_of(layer) for layer in layers}
    present = set(roles.values())
    met = {
        role: {one for one in present if one == role or one.startswith(f"{role}.")}
        or {one for group in stand_ins(role, present) for one in group}
        for role in wanted
    }
    missing = [role for role in wanted if not met[role]]
    if missing if not together else len(missing) == len(wanted):
        raise BadInput(
            f"no layer has the role {', '.join(missing)}, which first={asked} of type_only asks for; the "
            f"roles are {', '.join(sorted(present))}; or take {', '.join((*SIZES, *TABLES))}."
        )
    ranks = {}
    for kind, role in roles.items():
        places = [0 if together else place for place, one in enumerate(wanted) if role in met[one]]
        ranks[kind] = min(places, default=len(wanted))
    return ranks
