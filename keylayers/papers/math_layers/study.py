"""Nepal et al. 2025 put to the test: are the layers for mathematics made in pre-training, and kept by post-training?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from keylayers.measures import PairedDifference, paired_difference
from keylayers.papers.math_layers.cells import DISTILLED, compute, tuning_fields
from keylayers.papers.math_layers.plan import LEAST_SEEDS, Scale
from keylayers.runs import RunFolder
from keylayers.studies.lab import Lab
from keylayers.studies.runner import workers

BASE = "base"

Model = tuple[str, str]
"""A base's name, and `base` or the kind of a variant of it."""

SURE = 0.05
"""A variant counts if the cost that its training should lower is lower in every seed, with a p-value below this."""


@dataclass(frozen=True)
class Study:
    """All that was measured, by model and seed."""

    scale: Scale
    profiles: Mapping[Model, tuple[Mapping[str, Any], ...]]
    """What each block is worth: see `math_layers_cells.profile`."""
    variants: Mapping[Model, tuple[Mapping[str, Any], ...]]
    """How each variant differs from its base: see `math_layers_cells.variant`."""
    teacher: Mapping[str, Any] | None = None

    @cached_property
    def judged(self) -> tuple[Model, ...]:
        """The variants that differ from their base; the others tell nothing about what post-training keeps."""
        return tuple(model for model, found in self.variants.items() if differs(found))

    def blocks(self, base: str) -> int:
        """How many blocks a base has."""
        return len(next(iter(self.profiles[base, BASE][0]["probes"].values()))["loss_damage"])


def lowered(variant: Sequence[Mapping[str, Any]]) -> PairedDifference:
    """By how much training lowered what it should lower, on held-out records; over seeds."""
    return paired_difference(*([one[key] for one in variant] for key in ("cost_before", "cost")))


def differs(variant: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it did so under every seed, and measurably so; one test of all, or more seeds would let fewer pass."""
    return all(one["cost"] < one["cost_before"] for one in variant) and lowered(variant).p_value < SURE


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[Study]:
    """What is known after every seed from the third on; what is finished is kept in the run folder, cell by cell."""
    with workers(processes) as pool:
        for seeds in range(LEAST_SEEDS, scale.seeds + 1):
            yield run_study(Lab(run, compute, pool), scale, seeds)


def run_study(lab: Lab, scale: Scale, seeds: int | None = None) -> Study:
    """The teacher, then the variants, then what every block of every model is worth; of the first so many seeds."""
    trained, drawn = tuning_fields(scale.tuning), range(scale.seeds if seeds is None else seeds)
    teacher, by = None, None
    if DISTILLED in scale.kinds:
        teacher = lab.ask("teacher", [{"model": scale.teacher, "tuning": trained}])[0]
        by = {"model": scale.teacher, "file": teacher["file"]}
    models = [(base, kind) for base in scale.families for kind in scale.kinds]
    asked = [
        {
            "kind": kind, "model": base, "seed": seed, "tuning": trained,
            "taught_by": by if kind == DISTILLED else None,
        }
        for seed in drawn
        for base, kind in models
    ]  # fmt: skip
    found = iter(lab.ask("variant", asked))
    made: dict[Model, list[dict[str, Any]]] = {model: [] for model in models}
    for _ in drawn:
        for model in models:
            made[model].append(next(found))
    every: list[Model] = [*((base, BASE) for base in scale.bases), *models]
    places = [(model, seed) for seed in drawn for model in every]
    shared = {"seeds": scale.seeds, "records": scale.records, "clusters": scale.clusters, "tokens": scale.tokens}
    files = {(model, seed): made[model][seed]["file"] if model in made else None for model, seed in places}
    profiled = lab.ask(
        "profile", [{"model": model[0], "file": files[model, seed], "seed": seed, **shared} for model, seed in places]
    )
    profiles: dict[Model, list[dict[str, Any]]] = {model: [] for model in every}
    for (model, _), one in zip(places, profiled, strict=True):
        profiles[model].append(one)
    return Study(
        replace(scale, seeds=len(drawn)),
        {model: tuple(each) for model, each in profiles.items()},
        {model: tuple(each) for model, each in made.items()},
        teacher,
    )
