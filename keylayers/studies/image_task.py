"""A task of a vision study: images, a network for them, how it is trained; and its models, stored and read back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keylayers.data.images import DIGITS, ImageParts, load_images, part_images
from keylayers.models.factory import from_factory
from keylayers.runs import digest, read_tensors, write_tensors
from keylayers.training.images import ImageTraining

DIGITS_SIZES = {"train": 900, "reference": 297, "calibration": 150, "test": 450}
"""All 1,797 digits."""


COPIES = {"cifar10_subset_10k_2k.npz": ("JPEG copies", "0.81", "0.918")}
"""File of images that are not what a published network was trained on -> what they are, what share of its test part
that network answers right, and what is published."""


@dataclass(frozen=True)
class ImageTask:
    """What every arm of a vision study shares."""

    name: str
    data: str = DIGITS
    network: str = "keylayers.models.digits:digits_resnet"
    sizes: Mapping[str, int] = field(default_factory=lambda: DIGITS_SIZES)
    """Images in each of the four disjoint parts."""
    training: ImageTraining = field(default_factory=ImageTraining)
    """Of the network that is attacked or defended."""
    weights: str | None = None
    """Safetensors it starts from; None: random weights, drawn anew with every seed."""
    held_from_test: bool = False
    """Whether reference and calibration images come from the data's own test part, as the test images do: `weights`
    never saw it, and what is calibrated on images from elsewhere promises nothing of these."""

    def fields(self) -> dict[str, Any]:
        """As plain JSON, for a cell; without `held_from_test` where it is off, as cells kept from before have it."""
        fields = asdict(self)
        return fields if self.held_from_test else {key: fields[key] for key in fields if key != "held_from_test"}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "ImageTask":
        """Back from plain JSON."""
        return cls(**{**fields, "training": ImageTraining(**fields["training"])})

    def parts(self, seed: int) -> ImageParts:
        """Four disjoint parts; each seed has its own."""
        return part_images(load_images(self.data), self.sizes, seed, held_from_test=self.held_from_test)

    def untrained(self, seed: int) -> nn.Module:
        """The network as training finds it, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return from_factory(self.network, self.weights)

    def trained(self, file: Path) -> nn.Module:
        """The network with stored weights and statistics, in eval mode; what else is stored beside them stays there."""
        model, held = from_factory(self.network), read_tensors(file)[0]
        model.load_state_dict({name: held[name] for name in model.state_dict()})
        return model.eval()


def mnist_task(places: tuple[str, str], sizes: Mapping[str, int], training: ImageTraining) -> ImageTask:
    """MNIST, and a network that starts from random weights; `places`: of models and of data."""
    file = f"{places[1]}/vision/mnist_full.npz"
    return ImageTask("MNIST", file, sizes=sizes, training=training, held_from_test=True)


def cifar_task(places: tuple[str, str], sizes: Mapping[str, int], training: ImageTraining) -> ImageTask:
    """CIFAR-10, and a published ResNet-20, calibrated and tested on images that it never saw."""
    return ImageTask(
        "CIFAR-10", f"{places[1]}/vision/cifar10_subset_10k_2k.npz", "keylayers.models.cifar:resnet20", sizes, training,
        f"{places[0]}/resnet_cifar10/resnet20.safetensors", held_from_test=True,
    )  # fmt: skip


def caveats(task: ImageTask) -> str:
    """What is the same in every seed of a task whose network came trained, and of what its images are; else nothing."""
    if task.weights is None:
        return ""
    count = sum(size for part, size in task.sizes.items() if part != "train")
    text = (
        f"The network of {task.name} came trained: all seeds start from its weights, and draw {count:,} images from "
        f"the same test part, so that intervals of {task.name} cover training and splits, not networks."
    )
    if found := COPIES.get(Path(task.data).name):
        made, here, published = found
        text += f" Its images are {made}: that network answers {here} of the test part right ({published} published)."
    return text


def store(model: nn.Module, folder: Path, key: object, beside: Mapping[str, nn.Module] | None = None) -> str:
    """Writes a model's weights and statistics below a run folder; the file's place there, which the key decides.

    `beside`: prefix -> a network that is stored in the same file.
    """
    place = Path("models") / f"{digest(key)[:20]}.safetensors"
    tensors = {name: value for name, value in model.state_dict().items()}
    for prefix, network in (beside or {}).items():
        tensors |= {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    write_tensors(folder / place, tensors)
    return str(place)
