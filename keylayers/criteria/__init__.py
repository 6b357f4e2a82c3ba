"""Ways of scoring layers: one idea, one file, one function `(evidence, layers, settings) -> LayerScores` each."""

import importlib
from typing import TYPE_CHECKING

from keylayers.errors import UnknownName

if TYPE_CHECKING:
    from keylayers.criteria.criterion import Criterion

CRITERIA = {
    "learned_mask": "gates learned on the change of each layer, everything else frozen (ILA)",
    "path_integral": "the loss drop of tuning, attributed to layers along the path from base to tuned",
    "leave_one_out": "loss increase when one layer's change is taken back",
    "add_one_in": "loss drop when the base model gets one layer's change alone",
    "delta_norm": "size of the change",
    "first_step": "loss drop that Adam's first step would bring through a layer's LoRA; needs no tuning",
    "random": "a seeded random number: the control",
}
"""Name -> one line on the idea; the name is also the file's and the function's."""


def check(name: str) -> None:
    """Raises UnknownName, with the nearest names, unless there is such a criterion."""
    if name not in CRITERIA:
        raise UnknownName("criterion", name, CRITERIA)


def get(name: str) -> "Criterion":
    """The criterion of that name. Raises UnknownName with the nearest names."""
    check(name)
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)
