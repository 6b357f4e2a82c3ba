"""Ways of scoring layers: one idea, one file, one function `(evidence, layers, settings) -> LayerScores` each."""

import importlib
from typing import TYPE_CHECKING

from keylayers.errors import UnknownName

if TYPE_CHECKING:
    from keylayers.criteria.protocol import Criterion

CRITERIA = {
    "learned_mask": "gates learned on the change of each layer, everything else frozen (ILA)",
    "path_integral": "the loss drop of tuning, attributed to layers along the path from base to tuned",
    "leave_one_out": "loss increase when one layer's change is taken back",
    "add_one_in": "loss drop when the base model gets one layer's change alone",
    "delta_norm": "size of the change",
    "first_step": "loss drop that Adam's first step would bring through a layer's LoRA; needs no tuning",
    "ablation": "what the model loses without a layer's contribution; needs no tuning",
    "signal_noise": "share of the weights' spectrum above noise (Spectrum); weights only",
    "condition_number": "low condition number of the weights (KappaTune); weights only",
    "spectral_exponent": "tail exponent of the weights' spectrum (AlphaLoRA); weights only",
    "depth_only": "depth and nothing else: a control",
    "type_only": "the kind of matrix and nothing else: a control",
    "cka_shift": "change points: blocks whose output is unlike their neighbours' (low CKA); forward passes alone",
    "component_shift": "the same of the top principal components (CCA with neighbouring blocks)",
    "block_influence": "one minus the cosine between what enters a block and what leaves it (ShortGPT)",
    "angular_distance": "angle by which a span of blocks turns the hidden states (Gromov et al.)",
    "token_clusters": "how a block regroups tokens: mutual information of their clusters that is lost (Nepal et al.)",
    "logit_lens_entropy": "how much more certain of the next token a block makes the logit lens",
    "shapley": "mean loss a layer's removal costs, over random orders of removal (Monte Carlo); sums to the total",
    "substitution": "loss increase when a window of tuned layers is put back to the base's",
    "gradient_norm": "norm of the gradient of the weights",
    "relative_gradient": "norm of the gradient relative to that of the weights (Auto-RGN)",
    "gradient_signal_noise": "squared mean of the gradient over its variance between batches (Auto-SNR)",
    "fisher": "empirical Fisher information of the weights: mean squared gradient of single examples",
    "skip_suppression": "how sharply attack success falls when a skip connection is turned down",
    "feature_fragility": "how much a layer amplifies an attack's change of the features before it (CLAT); images",
    "robust_capacity": "how much a small change of a layer's weights can raise the loss under attack (RiFT); images",
    "class_separation": "how much a layer draws the inputs of each class together: the layer of interest (DBALFA)",
    "random": "a seeded random number: the control",
}
"""Name -> one line on the idea; the name is also the file's, and `score_NAME` the function's."""
PREFIX = "score_"

DEFAULT = "path_integral"
DEFAULT_SETTINGS: dict[str, str] = {"points": "1"}
"""What ranks layers where nobody names a criterion: the midpoint gradient; why is said in docs/ila.md."""


def check(name: str) -> None:
    """Raises UnknownName, with the nearest names, unless there is such a criterion."""
    if name not in CRITERIA:
        raise UnknownName("criterion", name, CRITERIA)


def get(name: str) -> "Criterion":
    """The criterion of that name. Raises UnknownName with the nearest names."""
    check(name)
    return getattr(importlib.import_module(f"{__name__}.{name}"), f"{PREFIX}{name}")
