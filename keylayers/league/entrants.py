"""What the league asks: who enters, on which data, at which budgets."""

from dataclasses import dataclass, field

from keylayers import criteria
from keylayers.errors import BadInput
from keylayers.studies.rankings import RankingMethod, mask
from keylayers.studies.retraining import LearningRateGrid
from keylayers.studies.text_task import Task

BLOCK, BLOCKS = "block", "random blocks"
BEST, KINDS = "midpoint", "random, kinds of midpoint"
"""The default criterion, and the control that says how much of it is which kinds of layers it chooses."""

ENTRANTS = {
    # what tuning changed
    "ILA (s0 = 4)": mask("adam", 0.01, 100, 4.0),
    "ILA (s0 = 0)": mask("adam", 0.01, 100, 0.0),
    "path integral": RankingMethod("path_integral", {"points": 4}),
    BEST: RankingMethod("path_integral", {"points": 1}),
    "midpoint, 25 % of stage 1": RankingMethod("path_integral", {"points": 1}, 0.25, records=32),
    "midpoint, reversed": RankingMethod("path_integral", {"points": 1}, by="reverse"),
    "leave one out": RankingMethod("leave_one_out"),
    "add one in": RankingMethod("add_one_in"),
    "norm of the change": RankingMethod("delta_norm"),
    "substitution, 3 blocks": RankingMethod("substitution", {"window": 3}, granularity=BLOCK),
    # gradients at the start
    "first step": RankingMethod("first_step", {}, None),
    "gradient norm": RankingMethod("gradient_norm", {}, None),
    "relative gradient (Auto-RGN)": RankingMethod("relative_gradient", {"estimate": "batches"}, None),
    "gradient signal/noise (Auto-SNR)": RankingMethod("gradient_signal_noise", {}, None),
    "Fisher": RankingMethod("fisher", {}, None),
    # forward passes
    "ablation of blocks": RankingMethod("ablation", {}, None, granularity=BLOCK),
    "ablation of sublayers": RankingMethod("ablation", {}, None, granularity="sublayer"),
    "Shapley": RankingMethod("shapley", {}, None, granularity=BLOCK),
    "block influence (ShortGPT)": RankingMethod("block_influence", {}, None, granularity=BLOCK),
    "angular distance": RankingMethod("angular_distance", {}, None, granularity=BLOCK),
    "CKA shift": RankingMethod("cka_shift", {}, None, granularity=BLOCK),
    "component shift": RankingMethod("component_shift", {}, None, granularity=BLOCK),
    "token clusters": RankingMethod("token_clusters", {}, None, granularity=BLOCK),
    "logit lens entropy": RankingMethod("logit_lens_entropy", {}, None, granularity=BLOCK),
    # weights alone
    "signal/noise (Spectrum)": RankingMethod("signal_noise", {"variant": "spectrum"}, None),
    "signal/noise, corrected": RankingMethod("signal_noise", {}, None),
    "condition number (KappaTune)": RankingMethod("condition_number", {}, None),
    "spectral exponent": RankingMethod("spectral_exponent", {}, None),
    # nothing but the list of layers
    BLOCKS: RankingMethod("random", {}, None, granularity=BLOCK),
    "last layers": RankingMethod("depth_only", {"order": "last"}, None),
    "first layers": RankingMethod("depth_only", {"order": "first"}, None),
    "MLPs first": RankingMethod("type_only", {"first": "mlp"}, None),
    "q and v first": RankingMethod("type_only", {"first": "qv"}, None),
}
"""Name -> how it ranks the layers. What scores blocks gives every layer the score of its block, and within a block the
order is drawn."""

TURNS, THIN = "random by turns (LISA)", "most layers, lower rank"
"""Rivals without a ranking: random layers drawn anew while training, and as many layers as a lower rank pays for."""


def entrants_of(criterion: str) -> tuple[str, ...]:
    """The entrants of a criterion. Raises UnknownName, and BadInput for a criterion that none enters with."""
    criteria.check(criterion)
    found = tuple(name for name, way in ENTRANTS.items() if way.criterion == criterion)
    if not found:
        playing = ", ".join(sorted({way.criterion for way in ENTRANTS.values()}))
        raise BadInput(f"{criterion} does not play in the league of language models; expected one of {playing}.")
    return found


@dataclass(frozen=True)
class League:
    """A league to play."""

    tasks: tuple[Task, ...]
    entrants: tuple[str, ...] = tuple(ENTRANTS)
    budgets: tuple[float, ...] = (0.1, 0.3)
    """Shares of what LoRA adds to all layers."""
    seeds: int = 3
    """Each is a procedure of its own: stage 1, scores, random sets, training."""
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2, 3e-2)))
    draws: int = 3
    """Random sets of equal size per seed."""
    turn: int = 5
    """Steps after which `random by turns` draws anew."""
