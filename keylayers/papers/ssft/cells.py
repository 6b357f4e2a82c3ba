"""What the cells of the cleansing study compute: which skip each rule blames, and what suppressing a skip does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keylayers.actions.cleansing import Cleanse, cleanse
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.skip_suppression import Calibration, SkipSuppression, score_skip_suppression
from keylayers.errors import BadInput, Diverged
from keylayers.layers.naming import named_layers
from keylayers.measures.backdoor import predicted_classes
from keylayers.measures.objective import Batch, image_loss
from keylayers.runs.quiet import quiet_libraries
from keylayers.scores import LayerScores, Selection
from keylayers.studies.defence import Reference, image_threat, judge, reference_of
from keylayers.studies.image_task import ImageTask
from keylayers.studies.image_victims import TARGET, Backdoor, make_victim, victim
from keylayers.training.images import ImageTraining
from keylayers.training.planted_backdoor import batches, own_trigger, plant_backdoor, triggered

OWN_TARGET = 0  # class of the defender's own trigger; not the attacker's, which he does not know
ORACLE, OWN, CLEAN = "attacker's trigger (oracle)", "own trigger, planted", "clean images alone"


@dataclass(frozen=True)
class FinetuneSchedule:
    """How long and fast a cleansed model is tuned."""

    epochs: int
    learning_rate: float
    batch_size: int

    def steps(self, images: int) -> int:
        """Over that many images; a last batch of fewer is left out."""
        return self.epochs * (images // min(self.batch_size, images))

    def training(self, seed: int) -> ImageTraining:
        """As the training loop takes it."""
        return ImageTraining(self.epochs, self.batch_size, self.learning_rate, seed=seed)


RELEASED, RELEASED_IMAGES = FinetuneSchedule(10, 0.01, 128), 5000
"""Of the authors' code, whose rate stands still; here it rises and falls as in all trainings. And the images it tunes
on, half of a test set."""
LATER = FinetuneSchedule(20, 0.02, 50)
"""Of the further fine-tuning, on the calibration images; what is suppressed stays suppressed."""
NO_MORE = ImageTraining(epochs=0)
DIVERGED = "diverged"
"""Key of a cell whose training stopped being finite: what the error said, instead of figures. It would happen again at
every resume, so that it is a result as any other."""


def diverged(found: Mapping[str, Any]) -> bool:
    """Whether what a cell should have trained did not come to an end."""
    return found.get(DIVERGED) is not None


def released(images: int) -> FinetuneSchedule:
    """The released recipe over that many reference images: its steps, about 390, not its epochs.

    Ten epochs over the few hundred images here would be 20 or 30 steps, and say nothing of the authors' recipe.
    """
    wanted = RELEASED.steps(RELEASED_IMAGES)
    return replace(RELEASED, epochs=round(wanted / replace(RELEASED, epochs=1).steps(images)))


def score_skips(
    folder: Path, *, task: Mapping[str, Any], seed: int, attack: Mapping[str, Any], file: str
) -> dict[str, Any]:
    """Scores of every skip by the published rule under each calibration; only the oracle's saw the attacker's trigger.

    `own trigger`: a pattern of another kind than every attack's, planted into a copy of the model by tuning it on the
    reference. None where a rule blames no skip: its trigger could not be planted, or survives them all; `diverged`
    says of which rules planting stopped being finite.
    """
    found = victim(folder, ImageTask.of(task), seed, Backdoor(**attack), file)
    assert found.trigger is not None
    reference = reference_of(found.parts.reference)
    x, y = reference.images, reference.labels
    trigger, own = found.trigger, own_trigger(x)

    def planting() -> tuple[nn.Module, Sequence[Batch], Calibration]:
        return plant_backdoor(found.model, x, y, own, OWN_TARGET, seed), triggered(x, y, own, OWN_TARGET), "own-trigger"

    ways: dict[str, Callable[[], tuple[nn.Module, Sequence[Batch], Calibration]]] = {
        ORACLE: lambda: (found.model, triggered(x, y, trigger, TARGET), "oracle"),
        OWN: planting,
        CLEAN: lambda: (found.model, batches(x, y), "clean-only"),
    }
    scores: dict[str, list[float] | None] = {}
    broken: dict[str, str] = {}
    for way, made in ways.items():
        try:
            values = _scores(*made()).values
        except BadInput:
            if way != OWN:  # a trigger that could not be planted; else what is given is wrong
                raise
            scores[way] = None
        except Diverged as error:
            scores[way], broken[way] = None, str(error)
        else:
            scores[way] = values.tolist() if values.max() > 0 else None
    names = [layer.name for layer in named_layers(found.model, "skip")]
    return {"skips": names, "scores": scores, **({DIVERGED: broken} if broken else {})}


def _scores(model: nn.Module, data: Sequence[Batch], calibration: Calibration) -> LayerScores:
    evidence = Evidence(model=model, data=data, loss=image_loss, granularity="skip")
    return score_skip_suppression(evidence, named_layers(model, "skip"), SkipSuppression(calibration))


def suppressed(
    folder: Path,
    *,
    task: Mapping[str, Any],
    seed: int,
    attack: Mapping[str, Any],
    file: str,
    skips: Sequence[str],
    factor: float,
    tune: str,
    recipe: Mapping[str, Any],
    oracle: bool = False,
    later: bool = True,
) -> dict[str, Any]:
    """Skips turned down and the model tuned around them, judged by who holds the trigger: before, after, and (`later`,
    most of what a cell costs) after a further clean fine-tuning on other images. `oracle`: that these skips were chosen
    with the attacker's trigger."""
    found = victim(folder, ImageTask.of(task), seed, Backdoor(**attack), file)
    assert found.trigger is not None

    def defence(model: nn.Module, reference: Reference) -> nn.Module:
        return _cleansed(model, reference, skips, factor, tune, FinetuneSchedule(**recipe), seed)

    more = LATER.training(seed) if later else NO_MORE
    threat = image_threat(found.parts, found.trigger, TARGET, later=more)
    try:
        outcome = judge(threat, found.model, defence).as_dict()
    except Diverged as error:
        return {DIVERGED: str(error), "oracle": oracle}
    if not later:
        del outcome["attacked"]["later"]
    return {**outcome, "oracle": oracle}


def cost(
    folder: Path,
    *,
    task: Mapping[str, Any],
    seed: int,
    file: str,
    skips: Sequence[str],
    factor: float,
    tune: str,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """The same done to a model that nobody attacked: its accuracy on test images before and after."""
    own = ImageTask.of(task)
    model, parts = own.trained(folder / file), own.parts(seed)
    x, y = parts.test.tensors()
    before = float((predicted_classes(model, x) == y).float().mean())
    try:
        made = _cleansed(model, reference_of(parts.reference), skips, factor, tune, FinetuneSchedule(**recipe), seed)
    except Diverged as error:
        return {DIVERGED: str(error)}
    return {"before": before, "after": float((predicted_classes(made, x) == y).float().mean())}


def _cleansed(
    model: nn.Module,
    reference: Reference,
    skips: Sequence[str],
    factor: float,
    tune: str,
    recipe: FinetuneSchedule,
    seed: int,
) -> nn.Module:
    settings = Cleanse(factor, tune, training=recipe.training(seed))  # type: ignore[arg-type]
    chosen = Selection.of(named_layers(model, "skip"), names=list(skips), allow_total=True)
    return cleanse(model, chosen, reference.images, reference.labels, settings).model


def all_skips(folder: Path, *, task: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the skips of a network, and of the stage each lies in."""
    model = ImageTask.of(task).untrained(0)
    names = [layer.name for layer in named_layers(model, "skip")]
    return {"names": names, "stages": [name.split(".")[0] for name in names]}


DO: dict[str, Callable[..., dict[str, Any]]] = {
    "make_victim": make_victim,
    "blamed": score_skips,
    "suppressed": suppressed,
    "cost": cost,
    "skips": all_skips,
}


def compute(folder: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: `do` says which of the functions above, the other fields are its arguments."""
    quiet_libraries()
    torch.set_num_threads(1)
    return DO[fields["do"]](Path(folder), **{key: value for key, value in fields.items() if key != "do"})


def best(scores: Sequence[float], count: int = 1) -> tuple[int, ...]:
    """Places of the most blamed skips, the first of equals; fewer than `count` where fewer are blamed (above 0)."""
    order = np.argsort(-np.asarray(scores), kind="stable")[:count].tolist()
    return tuple(place for place in order if scores[place] > 0)
