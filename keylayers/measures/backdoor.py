"""What a backdoor does: clean accuracy, attack success, recovered accuracy, and how well a defence changed them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.maths.triggers import Trigger
from keylayers.measures.intervals import Interval, wilson_interval
from keylayers.measures.loss import evaluating
from keylayers.measures.measure import wrong_answers
from keylayers.measures.objective import Batch, logits_of, model_device, on_device

Filter = Callable[[Any], Bool[Tensor, " samples"]]
"""Inputs -> which of them are refused as poisoned."""

LEAST_SUCCESS = 0.9
"""Attack success below which a defence is not judged."""


@dataclass(frozen=True)
class BackdoorFigures:
    """How a model treats clean and triggered inputs, with Wilson's intervals. What a filter refuses is in no share."""

    clean_accuracy: Interval
    """Share of clean inputs answered right."""
    attack_success_rate: Interval
    """Share of triggered inputs answered as the attacker wants, of those whose true answer is another."""
    recovered_accuracy: Interval
    """Share of the same triggered inputs answered right all the same."""

    def as_dict(self) -> dict[str, list[float]]:
        """Plain JSON: estimate, low and high of each."""
        return {name: [one.estimate, one.low, one.high] for name, one in vars(self).items()}

    def __str__(self) -> str:
        return (
            f"clean {self.clean_accuracy.estimate:.3f}, attack {self.attack_success_rate.estimate:.3f}, "
            f"recovered {self.recovered_accuracy.estimate:.3f}"
        )


def figures_of(right: Sequence[bool], hit: Sequence[bool], recovered: Sequence[bool]) -> BackdoorFigures:
    """From one truth value per clean input (`right`) and per triggered input (`hit`, `recovered`), of any modality.

    Raises:
        BadInput: without a clean or a triggered input.
    """
    if not len(right) or not len(hit) or len(hit) != len(recovered):
        raise BadInput(
            f"a backdoor was measured on {len(right)} clean and {len(hit)} triggered inputs, {len(recovered)} of them "
            "for recovery; expected at least one of each, and recovery on all triggered ones."
        )
    counts = ((sum(map(bool, one)), len(one)) for one in (right, hit, recovered))
    return BackdoorFigures(*(wilson_interval(*pair) for pair in counts))


@dataclass(frozen=True, eq=False)
class Attacked:
    """Test images with the trigger, only those whose true label is not the target; what a success would be."""

    images: Float[Tensor, "samples channels height width"]
    labels: Int[Tensor, " samples"]
    """The true ones."""
    target: int


def attacked(
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    trigger: Trigger,
    target: int,
    classes: int,
) -> Attacked:
    """The images of other classes than the target's, triggered: on the target's own, any model would succeed.

    Raises:
        BadInput: for labels or a target out of range, or without an image of another class.
    """
    check_labels(y, classes, "the test images", len(x))
    check_target(target, classes)
    others = y != target
    if not others.any():
        raise BadInput(f"all {len(y)} test images are of the target class {target}; give some of other classes.")
    with torch.no_grad():
        return Attacked(trigger(x[others]), y[others], target)


def backdoor_figures(
    model: nn.Module,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    triggered: Attacked,
    refuses: Filter | None = None,
) -> BackdoorFigures:
    """The three shares of a classifier, on clean images and on triggered ones; with a filter, of what it lets through
    over all. Raises BadInput as `figures_of` does."""
    clean, found = predicted_classes(model, x), predicted_classes(model, triggered.images)
    let = [torch.ones(len(one), dtype=torch.bool) for one in (clean, found)]
    if refuses is not None:
        let = [~flags_of(refuses, one) for one in (x, triggered.images)]
    return figures_of(
        ((clean == y) & let[0]).tolist(),
        ((found == triggered.target) & let[1]).tolist(),
        ((found == triggered.labels) & let[1]).tolist(),
    )


def flags_of(refuses: Filter, inputs: Any) -> Bool[Tensor, " samples"]:
    """What a filter refuses. Raises BadInput unless it says yes or no to each input."""
    flags = torch.as_tensor(refuses(inputs)).cpu()
    if flags.dtype != torch.bool or flags.shape != (len(inputs),):
        raise BadInput(
            f"a filter returned {str(flags.dtype).removeprefix('torch.')} of shape {tuple(flags.shape)} for "
            f"{len(inputs)} inputs; expected one truth value for each, True where it is refused."
        )
    return flags


def predicted_classes(
    model: nn.Module, x: Float[Tensor, "samples channels height width"], size: int = 256
) -> Int[Tensor, " samples"]:
    """The most likely class of each image, in eval mode, `size` images at a time."""
    with evaluating(model), torch.no_grad():
        device = model_device(model)
        return torch.cat([logits_of(model(some.to(device))).argmax(1).cpu() for some in x.split(size)])


def misses(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Records that the model does not answer exactly as their labels say, and how many there are.

    Labels are one class per image, or supervised tokens, all of which must be the most likely ones. With the attacker's
    target as labels, one minus their share is the attack success rate.

    Raises:
        BadInput: for a class out of range.
    """
    if batch["labels"].ndim != 1:
        return wrong_answers(model, batch)
    moved = on_device(batch, model_device(model))
    logits = logits_of(model(**{key: value for key, value in moved.items() if key != "labels"}))
    check_labels(batch["labels"], logits.shape[-1], "a batch", len(logits))
    return (logits.argmax(-1) != moved["labels"]).sum(dtype=torch.float64), len(logits)


def defence_effectiveness(before: BackdoorFigures, after: BackdoorFigures) -> float:
    """DER, in [0, 1]: (max(0, fall of attack success) - max(0, fall of clean accuracy) + 1) / 2; 1/2 is no effect.

    BackdoorBench (Wu et al. 2022, arXiv:2206.12654; DER from Zhu et al. 2023). The fall of clean accuracy counts
    against the defence; a rise counts nothing.
    """
    return effectiveness(before.attack_success_rate.estimate - after.attack_success_rate.estimate, _fall(before, after))


def effectiveness(attack_fell: float, accuracy_fell: float) -> float:
    """DER from what attack success and clean accuracy fell by, shares in [-1, 1]; rises, negative, count nothing."""
    return (max(0.0, attack_fell) - max(0.0, accuracy_fell) + 1) / 2


def robustness_improvement(before: BackdoorFigures, after: BackdoorFigures) -> float:
    """RIR, in [0, 1]: (max(0, rise of recovered accuracy) - max(0, fall of clean accuracy) + 1) / 2."""
    rose = after.recovered_accuracy.estimate - before.recovered_accuracy.estimate
    return (max(0.0, rose) - max(0.0, _fall(before, after)) + 1) / 2


def _fall(before: BackdoorFigures, after: BackdoorFigures) -> float:
    return before.clean_accuracy.estimate - after.clean_accuracy.estimate


def check_attack_works(before: BackdoorFigures, least: float = LEAST_SUCCESS) -> None:
    """Raises BadInput if the attack success before any defence is below `least`: then nothing can be said of one."""
    found = before.attack_success_rate
    if found.estimate < least:
        raise BadInput(
            f"the attack succeeds on {found.estimate:.1%} of triggered inputs before any defence (95 % interval "
            f"{found.low:.1%} to {found.high:.1%}); at least {least:.0%} is needed to judge a defence. Poison a larger "
            "share, train longer, or use a stronger trigger."
        )


def check_labels(y: Int[Tensor, " samples"], classes: int, what: str, count: int | None = None) -> None:
    """Raises BadInput unless there is one label per image, each a class that exists."""
    if count is not None and len(y) != count:
        raise BadInput(f"{what}: {count} images and {len(y)} labels; expected as many of each.")
    bad = (y < 0) | (y >= classes)
    if bad.any():
        raise BadInput(
            f"{what}: label {int(y[bad][0])} is out of range ({int(bad.sum())} such); the {classes} classes are "
            f"numbered 0 to {classes - 1}."
        )


def check_target(target: int, classes: int) -> None:
    """Raises BadInput unless the target is one of at least two classes."""
    if classes < 2:
        raise BadInput(f"a backdoor needs a target and another class, but there is {classes} class; give at least 2.")
    if not 0 <= target < classes:
        raise BadInput(f"the target class is {target}; expected 0 to {classes - 1}, one of the {classes} classes.")


def check_no_class_empty(y: Int[Tensor, " samples"], classes: int, what: str) -> None:
    """Raises BadInput if a class has no image; names the first."""
    empty = (torch.bincount(y, minlength=classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise BadInput(
            f"{what}: class {empty[0]} has no image ({len(empty)} of {classes} classes have none); a model tuned on it "
            "would forget that class: draw more images, or draw some of each class."
        )
