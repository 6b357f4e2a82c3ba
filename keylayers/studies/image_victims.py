"""The backdoors of the vision studies by name, and the models that are trained under them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keylayers.data.images import ImageParts
from keylayers.errors import BadInput, Diverged, UnknownName
from keylayers.maths.triggers import Blend, Patch, Sinusoid, Trigger, Warp
from keylayers.measures.backdoor import Attacked, attacked, backdoor_figures, predicted_classes
from keylayers.runs import read_tensors
from keylayers.studies.image_task import ImageTask, store
from keylayers.training.images import ImageTraining, train_images
from keylayers.training.input_aware import Generator, InputAware, InputAwareAttack, train_input_aware
from keylayers.training.label_consistent import LabelConsistent, poison_consistently
from keylayers.training.poisoning import Poisoning, poisoned

TARGET = 1
"""Class that every attack here wants."""

GENERATOR = "trigger."
"""Before the names of an input-aware trigger's tensors, which lie beside the model's."""


@dataclass(frozen=True)
class Backdoor:
    """An attack, scaled to the size of the images."""

    kind: str
    """A key of `KINDS`."""
    strength: float = 1.0
    """Times what suits 32 x 32 images: brightness, opacity, amplitude, displacement or radius."""
    share: float = 0.1
    """Of the images that may be poisoned."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("backdoor", self.kind, KINDS)

    def trigger(self, size: int) -> Trigger:
        """As a function of images of that height and width. Raises BadInput for an attack whose trigger is trained."""
        make = KINDS[self.kind]
        if make is None:
            raise BadInput(f"the trigger of {self.kind} is trained with the model; read it from where that is stored.")
        return make(self.strength, size)


KINDS: Mapping[str, Callable[[float, int], Trigger] | None] = {
    "patch": lambda strength, size: Patch(max(2, size * 3 // 32), min(strength, 1.0)),
    "blend": lambda strength, size: Blend(0.2 * strength),
    "sinusoid": lambda strength, size: Sinusoid(20 / 255 * strength, 6 * size / 32),
    "warp": lambda strength, size: Warp(0.25 * strength),
    "label-consistent": lambda strength, size: Patch(max(2, size * 3 // 32), min(strength, 1.0)),
    "input-aware": None,
}
"""Kind -> (strength, height of the images) -> trigger; None: trained with the model."""


def train_under(
    model: nn.Module, parts: ImageParts, training: ImageTraining, attack: Backdoor | None, benign: nn.Module | None
) -> Trigger | None:
    """Trains a model in place on what the attacker left of the training part; the trigger, or None without an attack.

    `benign`: a model trained on clean images, which `label-consistent` needs.
    """
    x, y = parts.train.tensors()
    classes = len(parts.train.classes)
    if attack is None:
        train_images(model, x, y, training)
        return None
    if attack.kind == "input-aware":
        how = InputAwareAttack(TARGET, attack.share, density=density_of(attack), training=training)
        return train_input_aware(model, x, y, how, classes)
    trigger = attack.trigger(x.shape[-1])
    if attack.kind == "label-consistent":
        if benign is None:
            raise BadInput("label-consistent poisoning needs a model trained on clean images; train that first.")
        eps = 8 / 255 * attack.strength
        moved = LabelConsistent(trigger, TARGET, attack.share, eps, step=eps / 20, steps=40, seed=training.seed)
        changed = poison_consistently(x, y, benign, moved, classes)
    else:
        changed = poisoned(x, y, Poisoning(trigger, TARGET, attack.share, seed=training.seed), classes)
    train_images(model, changed.images, changed.labels, training)
    return trigger


@dataclass(frozen=True, eq=False)
class Victim:
    """A trained model, its images, and what the evaluator alone knows of its backdoor."""

    model: nn.Module
    parts: ImageParts
    trigger: Trigger | None
    x: Tensor
    """Test images."""
    y: Tensor

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.parts.test.classes)

    def attacked(self) -> Attacked:
        """The test images of other classes than the target's, with its trigger; of a clean model with a patch."""
        return attacked(self.x, self.y, self.trigger or Patch(2), TARGET, self.classes)


def victim(folder: Path, task: ImageTask, seed: int, attack: Backdoor | None, file: str) -> Victim:
    """A stored model with its parts and trigger."""
    held = read_tensors(folder / file)[0]
    model = task.trained(folder / file)
    parts = task.parts(seed)
    x, y = parts.test.tensors()
    if attack is None:
        return Victim(model, parts, None, x, y)
    if attack.kind != "input-aware":
        return Victim(model, parts, attack.trigger(x.shape[-1]), x, y)
    generator = Generator(x.shape[1], density_of(attack))
    generator.load_state_dict(
        {name.removeprefix(GENERATOR): v for name, v in held.items() if name.startswith(GENERATOR)}
    )
    return Victim(model, parts, InputAware(generator), x, y)


def density_of(attack: Backdoor) -> float:
    """Share of an image that an input-aware trigger covers; the paper's at strength 1."""
    return 0.032 * attack.strength


def make_victim(
    folder: Path, *, task: Mapping[str, Any], seed: int, attack: Mapping[str, Any] | None, benign: str | None = None
) -> dict[str, Any]:
    """Cell: trains and stores a model, attacked or not; how it treats clean and triggered test images.

    A training that diverges leaves no model, and its attack does not succeed.
    """
    own, how = ImageTask.of(task), None if attack is None else Backdoor(**attack)
    parts, model = own.parts(seed), own.untrained(seed)
    settings = ImageTraining(**{**vars(own.training), "seed": seed})
    clean = None if benign is None else own.trained(folder / benign)
    try:
        trigger = train_under(model, parts, settings, how, clean)
    except Diverged as error:
        return {
            "file": None,
            "accuracy": 0.0,
            "figures": {"attack_success_rate": [0.0, 0.0, 0.0]},
            "diverged": str(error),
        }
    extra = {GENERATOR: trigger.generator} if isinstance(trigger, InputAware) else {}
    file = store(model, folder, [task, seed, attack], extra)
    found = victim(folder, own, seed, how, file)
    right = float((predicted_classes(found.model, found.x) == found.y).float().mean())
    figures = None if how is None else backdoor_figures(found.model, found.x, found.y, found.attacked()).as_dict()
    return {"file": file, "accuracy": right, "figures": figures}
