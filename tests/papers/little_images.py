"""A small task of digits whose backdoor is learnt in half a second, for the tests of the vision studies."""

from pathlib import Path

import numpy as np

from keylayers.models.digits import DigitsResNet
from keylayers.studies.backdoor_tasks import BackdoorTask
from keylayers.studies.image_task import ImageTask
from keylayers.studies.image_victims import Backdoor
from keylayers.training.images import ImageTraining

LITTLE = "tests.papers.little_images:little_resnet"
"""A network with a skip of each kind, for tests that train many."""
SIZES = {"train": 400, "reference": 120, "calibration": 60, "test": 120}


def little_resnet() -> DigitsResNet:
    """Three blocks, 0.01 M parameters: an identity and two projections."""
    return DigitsResNet(blocks=1, widths=(8, 12, 16))


def watched(seeds: int = 2, network: str = ImageTask.network, **attacks: Backdoor) -> BackdoorTask:
    """Two seeds and a patch, unless other attacks are given."""
    task = ImageTask("small digits", network=network, sizes=SIZES, training=ImageTraining(epochs=6, batch_size=50))
    return BackdoorTask(task, attacks or {"patch": Backdoor("patch", share=0.3)}, seeds)


def cifar_like(folder: Path) -> None:
    """As many images as the study takes of CIFAR-10, black ones of 2 x 2 pixels, where it looks for them."""
    (folder / "vision").mkdir()
    arrays = {}
    for part, count in (("train", 10_000), ("test", 2_000)):
        arrays |= {f"x_{part}": np.zeros((count, 2, 2, 3), np.uint8), f"y_{part}": np.arange(count) % 10}
    np.savez_compressed(folder / "vision" / "cifar10_subset_10k_2k.npz", **arrays)
