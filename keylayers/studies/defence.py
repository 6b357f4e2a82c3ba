"""A backdoor defence judged by someone who holds the trigger; the defence gets the model and clean data alone."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.actions.fingerprinting import fingerprints
from keylayers.data.images import ImageParts, Images
from keylayers.errors import BadInput
from keylayers.maths.triggers import Trigger
from keylayers.measures.backdoor import (
    LEAST_SUCCESS,
    BackdoorFigures,
    Filter,
    attacked,
    backdoor_figures,
    check_attack_works,
    check_no_class_empty,
    defence_effectiveness,
    flags_of,
    robustness_improvement,
)
from keylayers.measures.intervals import Interval, wilson_interval
from keylayers.studies.leaks import reaches
from keylayers.training.images import ImageTraining, train_images

Defence = Callable[..., nn.Module | Filter]
"""(model, reference) -> a cleansed model, or a filter; with `oracle` (model, reference, attack)."""


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """Clean images and their true labels: all that a defence gets besides the model.

    It holds two tensors and names, nothing that leads back to who made it; other fields cannot be added.

    Raises:
        BadInput: for anything else in it, or a class without an image.
    """

    images: Float[Tensor, "samples channels height width"]
    labels: Int[Tensor, " samples"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        kinds = (type(self.images), type(self.labels), {type(name) for name in self.classes})
        if kinds != (Tensor, Tensor, {str}) or len(self.images) != len(self.labels):
            raise BadInput(
                f"a reference got {kinds[0].__name__} and {kinds[1].__name__}; expected plain tensors of images and "
                "labels, as many of each, and the names of the classes. Make it with reference_of."
            )
        check_no_class_empty(self.labels, len(self.classes), "the reference")


def reference_of(images: Images) -> Reference:
    """Copies of the images, without their places in the source. Raises BadInput if a class has none."""
    return Reference(*images.tensors(), images.classes)


@dataclass(frozen=True)
class Attack:
    """What only the judge knows; under `oracle` the defence gets it, too, and every report says so."""

    trigger: Any
    """For images a `Trigger`."""
    target: Any


@dataclass(frozen=True, eq=False)
class Threat:
    """An attack and how it is measured, as functions, so that any sort of model can be judged."""

    attack: Attack
    reference: Callable[[], Any]
    """A fresh copy of the clean data for every defence."""
    measured: Callable[[nn.Module, Filter | None], BackdoorFigures]
    """On test data that no defence sees; what the filter refuses is in no share."""
    flagged: Callable[[Filter], tuple[Interval, Interval]]
    """Shares of clean and of triggered test inputs that a filter refuses."""
    tuned_later: Callable[[nn.Module], object]
    """A further fine-tuning on clean data, in place: does the backdoor come back?"""


def image_threat(parts: ImageParts, trigger: Trigger, target: int, *, later: ImageTraining | None = None) -> Threat:
    """An attack on a classifier of images: measured on the test part, later tuned on the calibration part.

    That the four parts share no image is asserted by their places when `ImageParts` is made.

    Raises:
        BadInput: for a target out of range, a class that the reference lacks, or parts of different classes.
    """
    if len({part.classes for part in vars(parts).values()}) != 1:
        raise BadInput("the four parts have different classes; make them from one source with part_images.")
    x, y = parts.test.tensors()
    triggered = attacked(x, y, trigger, target, len(parts.test.classes))
    reference_of(parts.reference)

    def measured(model: nn.Module, refuses: Filter | None) -> BackdoorFigures:
        return backdoor_figures(model, x, y, triggered, refuses)

    def flagged(refuses: Filter) -> tuple[Interval, Interval]:
        flags = (flags_of(refuses, images.clone()) for images in (x, triggered.images))
        clean, bad = (wilson_interval(int(one.sum()), len(one)) for one in flags)
        return clean, bad

    def tuned_later(model: nn.Module) -> list[float]:
        model.requires_grad_(True)
        return train_images(model, *parts.calibration.tensors(), later or ImageTraining(learning_rate=0.02))

    return Threat(Attack(trigger, target), lambda: reference_of(parts.reference), measured, flagged, tuned_later)


@dataclass(frozen=True)
class Outcome:
    """What a defence did to one model."""

    before: BackdoorFigures
    after: BackdoorFigures
    later: BackdoorFigures | None
    """After a further clean fine-tuning of a cleansed model; None of a filter."""
    flagged: tuple[Interval, Interval] | None
    """Of a filter: the shares of clean and of triggered inputs that it refuses."""

    @property
    def effectiveness(self) -> float:
        """DER, in [0, 1]; 1/2 is no effect."""
        return defence_effectiveness(self.before, self.after)

    @property
    def improvement(self) -> float:
        """RIR, in [0, 1]; 1/2 is no effect."""
        return robustness_improvement(self.before, self.after)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        stages = {name: one.as_dict() for name in ("before", "after", "later") if (one := getattr(self, name))}
        refused = {} if self.flagged is None else dict(zip(("clean", "triggered"), self.flagged, strict=True))
        flagged = {name: [one.estimate, one.low, one.high] for name, one in refused.items()}
        return {**stages, "flagged": flagged, "der": self.effectiveness, "rir": self.improvement}

    def __str__(self) -> str:
        stages = [f"{name} {one}" for name in ("before", "after", "later") if (one := getattr(self, name))]
        if self.flagged:
            stages.append(f"refused {self.flagged[0].estimate:.3f} of clean, {self.flagged[1].estimate:.3f} triggered")
        return "; ".join([*stages, f"DER {self.effectiveness:.3f}, RIR {self.improvement:.3f}"])


@dataclass(frozen=True)
class Judgement:
    """A defence on an attacked model, and on one without a backdoor."""

    attacked: Outcome
    control: Outcome | None
    """On a model that nobody attacked: what the defence costs and refuses where there is nothing to find."""
    oracle: bool
    """Whether the defence was given the attacker's trigger, which no defender has."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, `oracle` first."""
        control = None if self.control is None else self.control.as_dict()
        return {"oracle": self.oracle, "attacked": self.attacked.as_dict(), "control": control}

    def __str__(self) -> str:
        lines = ["oracle: the defence was given the attacker's trigger"] if self.oracle else []
        lines.append(f"attacked: {self.attacked}")
        return "\n".join(lines if self.control is None else [*lines, f"control: {self.control}"])


def judge(
    threat: Threat,
    model: nn.Module,
    defence: Defence,
    *,
    control: nn.Module | None = None,
    oracle: bool = False,
    least: float = LEAST_SUCCESS,
) -> Judgement:
    """What the defence does to copies of an attacked and of a control model; both are left as they were.

    Raises:
        BadInput: if the attack succeeds on less than `least` of its inputs before, if the defence or a model holds the
            trigger and `oracle` was not asked for, or if the defence returns neither a model nor a filter.
    """
    before = threat.measured(model, None)
    check_attack_works(before, least)
    secrets = (threat.attack, threat.attack.trigger, threat)
    for what, held in (("the defence", defence), ("the model", model), ("the control model", control)):
        if not oracle and reaches(held, secrets):
            raise BadInput(
                f"{what} holds the attacker's trigger, so that nothing would be learnt of a defender who lacks it. "
                "Give the defence a trigger of its own, or ask for an oracle (`oracle`), which is stamped on "
                "every report."
            )
    found = _outcome(threat, model, defence, before, oracle)
    other = None if control is None else _outcome(threat, control, defence, threat.measured(control, None), oracle)
    return Judgement(found, other, oracle)


def _outcome(threat: Threat, model: nn.Module, defence: Defence, before: BackdoorFigures, oracle: bool) -> Outcome:
    state = fingerprints(model)
    given = (copy.deepcopy(model), threat.reference(), *((threat.attack,) if oracle else ()))
    made = defence(*given)
    if fingerprints(model) != state:
        raise BadInput("the defence changed the model that is judged and not its copy; it must use what it is given.")
    if isinstance(made, nn.Module):
        after, later = threat.measured(made, None), copy.deepcopy(made)
        threat.tuned_later(later)
        return Outcome(before, after, threat.measured(later, None), None)
    if not callable(made):
        raise BadInput(
            f"the defence returned {type(made).__name__}; expected a model (of `Cleansed`, its .model) or a function "
            "from inputs to which of them are refused."
        )
    with torch.no_grad():
        return Outcome(before, threat.measured(model, made), None, threat.flagged(made))
