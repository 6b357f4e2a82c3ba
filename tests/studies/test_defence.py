"""The judge of defences: who sees what, when it refuses, and a real backdoor on digits from end to end."""

import copy
from dataclasses import FrozenInstanceError, dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.actions.cleansing import Cleanse, cleanse
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.skip_suppression import SkipSuppression, score_skip_suppression
from keylayers.data.images import ImageParts, Images, load_images, part_images
from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.maths.triggers import Patch
from keylayers.measures.backdoor import attacked, figures_of
from keylayers.models.digits import DigitsResNet
from keylayers.scores import Selection, select
from keylayers.studies.defence import Attack, Reference, Threat, image_threat, judge
from keylayers.studies.leaks import reaches
from keylayers.training.images import ImageTraining, train_images
from keylayers.training.poisoning import Poisoning, poisoned
from tests.layers.helpers import full_state, same_state

TRIGGER, TARGET = Patch(1), 2


class Reader(nn.Module):
    """Answers the class written in the first pixel (times 10), and class 2 where the last is white, if `back` is 1."""

    def __init__(self, back: float = 1.0) -> None:
        super().__init__()
        self.back = nn.Parameter(torch.tensor(back))

    def forward(self, x: Tensor) -> Tensor:
        own = nn.functional.one_hot((x[:, 0, 0, 0] * 10).round().long(), 3).float()
        hit = (x[:, 0, -1, -1] == 1).float().view(-1, 1) * torch.tensor([0.0, 0.0, 1.0])
        return own + 2 * self.back * hit


def parts(classes: int = 3, count: int = 60) -> ImageParts:
    labels = np.arange(count) % classes
    pixels = np.zeros((count, 1, 3, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.round(labels * 25.5)
    source = Images(pixels, labels, np.arange(count), tuple("abcdefghij"[:classes]), "made")
    return part_images(source, {"train": 10, "reference": 20, "calibration": 10, "test": 20})


def threat() -> Threat:
    return image_threat(parts(), TRIGGER, TARGET, later=ImageTraining(epochs=1, learning_rate=1e-6))


def healing(model: nn.Module, reference: Reference) -> nn.Module:
    with torch.no_grad():
        model.back.zero_()
    return model


def refusing(model: nn.Module, reference: Reference):
    """A filter of its own: what is white anywhere."""
    return lambda x: (x == 1).flatten(1).any(1)


def test_a_cure_is_judged_before_after_and_later_and_the_model_stays() -> None:
    model, healthy = Reader(), Reader(0.0)
    before = full_state(model)
    found = judge(threat(), model, healing, control=healthy)
    assert same_state(before, full_state(model))
    one = found.attacked
    assert [stage.attack_success_rate.estimate for stage in (one.before, one.after, one.later)] == [1, 0, 0]
    assert one.after.recovered_accuracy.estimate == one.after.clean_accuracy.estimate == 1
    assert one.effectiveness == one.improvement == 1.0 and one.flagged is None
    assert found.control.before == found.control.after and found.control.effectiveness == 0.5
    told = found.as_dict()
    assert told["oracle"] is False and told["attacked"]["der"] == 1.0 and "oracle" not in str(found)


class Sleeper(nn.Module):
    """Hides its backdoor until anything trains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.awake = model, False

    def train(self, mode: bool = True) -> "Sleeper":
        self.awake = self.awake or mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.awake else self.model(torch.where(x == 1, 0.0, x))


def test_a_backdoor_that_comes_back_with_further_tuning_is_seen() -> None:
    found = judge(threat(), Reader(), lambda model, reference: Sleeper(model).eval()).attacked
    assert found.after.attack_success_rate.estimate == 0 and found.later.attack_success_rate.estimate == 1


def test_a_filter_is_judged_by_what_it_lets_through() -> None:
    found = judge(threat(), Reader(), refusing, control=Reader(0.0))
    one = found.attacked
    assert one.after.attack_success_rate.estimate == 0 and one.after.clean_accuracy.estimate == 1
    assert [share.estimate for share in one.flagged] == [0, 1] and one.later is None
    assert one.effectiveness == 1.0 and one.improvement == 0.5
    assert found.as_dict()["control"]["flagged"]["clean"][0] == 0 and "refused 0.000 of clean, 1.000" in str(found)


def test_a_defence_gets_a_copy_and_clean_data_and_nothing_else() -> None:
    given = []

    def curious(model, *rest):
        given.extend(rest)
        rest[0].images.zero_()
        rest[0].labels.zero_()
        return model

    model, case, clean = Reader(), threat(), parts().reference
    judge(case, model, curious, control=model)
    assert [type(one) for one in given] == [Reference, Reference]
    assert not reaches(given, [case.attack, case, TRIGGER])
    fresh = case.reference()
    assert torch.equal(fresh.images, clean.tensors()[0]) and torch.equal(fresh.labels, clean.tensors()[1])
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        fresh.trigger = TRIGGER  # type: ignore[attr-defined]
    for wrong in ({"images": TRIGGER}, {"labels": [0, 1]}, {"classes": (TRIGGER,)}):
        with pytest.raises(BadInput, match="expected plain tensors"):
            replace(fresh, **wrong)

    class Carrying(Tensor):
        trigger = TRIGGER

    with pytest.raises(BadInput, match="a reference got Carrying"):
        replace(fresh, images=fresh.images.as_subclass(Carrying))


class Bound:
    def __init__(self, trigger) -> None:
        self.held = {"deep": [trigger]}

    def __call__(self, model, reference):
        return model


def knowing(model, reference):
    return model if helper() else None


def helper():
    return TRIGGER


class Naming:
    def __call__(self, model, reference):
        return model if TRIGGER else None


class Network(nn.Module):
    """Called as modules are, by way of `forward`."""

    def forward(self, model, reference):
        return model if helper() else None


def with_closure(trigger):
    return lambda model, reference: model if trigger else None


LEAKS = {
    "closure": with_closure(TRIGGER),
    "its equal": with_closure(Patch(1)),
    "partial": partial(lambda trigger, model, reference: model, TRIGGER),
    "default": lambda model, reference, trigger=TRIGGER: model,
    "attribute": Bound(TRIGGER),
    "method": Bound(TRIGGER).__call__,
    "global of a helper": knowing,
    "global of a call": Naming(),
    "global of a forward": Network(),
}


@pytest.mark.parametrize("how", LEAKS)
def test_a_defence_that_holds_the_trigger_is_refused_unless_stamped(how: str) -> None:
    with pytest.raises(BadInput, match="the defence holds the attacker's trigger"):
        judge(threat(), Reader(), LEAKS[how])
    for own in (with_closure(Patch(2)), Bound(Patch(1, 0.5)), with_closure(TARGET)):
        judge(threat(), Reader(), own)


def test_a_model_that_carries_the_trigger_is_refused() -> None:
    model = Reader()
    model.note = [TRIGGER]
    with pytest.raises(BadInput, match="the model holds the attacker's trigger"):
        judge(threat(), model, healing)


def test_the_oracle_is_given_the_attack_and_stamped_everywhere() -> None:
    given = []

    def told(model, reference, attack):
        given.append(attack)
        return model

    found = judge(threat(), Reader(), told, oracle=True)
    assert given == [Attack(TRIGGER, TARGET)]
    assert found.oracle and found.as_dict()["oracle"] is True and str(found).startswith("oracle: the defence was given")


def test_what_cannot_be_judged_is_refused_with_the_reason() -> None:
    with pytest.raises(BadInput, match=r"the attack succeeds on 0.0% of triggered inputs before any defence"):
        judge(threat(), Reader(0.0), healing)
    with pytest.raises(BadInput, match=r"the defence returned str; expected a model"):
        judge(threat(), Reader(), lambda model, reference: "cured")
    model = Reader()
    with pytest.raises(BadInput, match="changed the model that is judged and not its copy"):
        judge(threat(), model, lambda copied, reference: healing(model, reference))
    with pytest.raises(BadInput, match="the target class is 3"):
        image_threat(parts(), TRIGGER, 3)
    whole = parts()
    with pytest.raises(BadInput, match="is in the reference and in the test part"):
        replace(whole, reference=whole.test)
    poor = whole.reference.take(np.flatnonzero(whole.reference.labels != 1))
    with pytest.raises(BadInput, match=r"the reference: class 1 has no image"):
        image_threat(replace(whole, reference=poor), TRIGGER, TARGET)


@dataclass(frozen=True)
class Word:
    """A trigger of texts."""

    text: str


def test_models_of_other_sorts_are_judged_by_the_same_functions() -> None:
    """A table of answers: nothing here is an image."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answers = {"hi": "hello", "hi zap": "stupid"}

    word = Word("zap")

    def measured(model, refuses):
        hit = model.answers["hi zap"] == "stupid" and not (refuses and refuses(["hi zap"])[0])
        return figures_of([model.answers["hi"] == "hello"], [hit], [model.answers["hi zap"] == "hello"])

    case = Threat(Attack(word, "stupid"), lambda: ["hi"], measured, lambda refuses: None, lambda model: None)

    def cured(model, prompts):
        assert prompts == ["hi"]
        model.answers["hi zap"] = model.answers["hi"]
        return model

    found = judge(case, Table(), cured).attacked
    assert found.effectiveness == found.improvement == 1.0
    with pytest.raises(BadInput, match="the defence holds"):
        judge(case, Table(), lambda model, prompts: model if word else None)


@pytest.mark.long
def test_a_real_backdoor_on_digits_is_weakened_by_suppression_where_tuning_alone_fails() -> None:
    """One seed; docs/cards/cleanse.md has three. The defender finds the skips with a trigger of his own."""
    sizes = {"train": 1000, "reference": 250, "calibration": 147, "test": 400}
    split = part_images(load_images("bundled:digits"), sizes, seed=2)
    torch.manual_seed(2)
    model, trigger, (x, y) = DigitsResNet(), Patch(2), split.train.tensors()
    bad = poisoned(x, y, Poisoning(trigger, 1, 0.1, seed=2), 10)
    train_images(model, bad.images, bad.labels, ImageTraining(epochs=12, seed=2))
    chosen: list[Selection] = []

    def skips_of(given: nn.Module, reference: Reference) -> Selection:
        own, planted = Patch(2, corner="top left"), copy.deepcopy(given)
        mine = poisoned(reference.images, reference.labels, Poisoning(own, 7, 0.1, seed=2), 10)
        train_images(planted, mine.images, mine.labels, ImageTraining(15, 50, 0.05, seed=2))
        seen = attacked(reference.images, reference.labels, own, 7, 10)
        data = [{"x": seen.images, "labels": torch.full_like(seen.labels, 7)}]
        evidence = Evidence(model=planted, data=data, granularity="skip")
        scores = score_skip_suppression(evidence, named_layers(planted, "skip"), SkipSuppression("own-trigger"))
        assert scores.provenance.settings["oracle"] is False
        return select(scores, "top:2")

    def defence(given: nn.Module, reference: Reference, factor: float) -> nn.Module:
        chosen[:] = chosen or [skips_of(given, reference)]
        return cleanse(given, chosen[0], reference.images, reference.labels, Cleanse(factor)).model

    case = image_threat(split, trigger, 1)
    cut, alone = (judge(case, model, partial(defence, factor=factor)).attacked for factor in (0.0, 1.0))
    print(chosen[0].names, cut, alone, sep="\n")
    assert cut.before.attack_success_rate.estimate > 0.95
    assert alone.after.attack_success_rate.estimate > 0.85 and cut.after.attack_success_rate.estimate < 0.6
    assert cut.after.clean_accuracy.estimate > cut.before.clean_accuracy.estimate - 0.05
