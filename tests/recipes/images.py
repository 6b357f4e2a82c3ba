"""A small task of digits whose backdoor is learnt in half a second, for the tests of the vision studies."""

from keylayers.recipes.image_attacks import Backdoor
from keylayers.recipes.image_tasks import ImageTask
from keylayers.recipes.lfa import Watched
from keylayers.training.images import ImageTraining

SIZES = {"train": 400, "reference": 120, "calibration": 60, "test": 120}


def watched(seeds: int = 2, **attacks: Backdoor) -> Watched:
    """Two seeds and a patch, unless other attacks are given."""
    task = ImageTask("small digits", sizes=SIZES, training=ImageTraining(epochs=6, batch_size=50))
    return Watched(task, attacks or {"patch": Backdoor("patch", share=0.3)}, seeds)
