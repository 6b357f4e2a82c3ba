"""What the ILA study asks: the ways of scoring, the tasks, the arms and how much of each at every scale."""

from keylayers.inputs.text import Inputs
from keylayers.studies.rankings import RankingMethod, mask
from keylayers.studies.real_data import real_data_folders
from keylayers.studies.text_task import Task
from keylayers.training.trainer import TrainSettings

WAYS = {
    # deviates: the paper states neither optimiser nor rate, initial score or steps; here 4.0, believed its own, and 100
    # Adam steps at 0.01. Other masks are on trial in `mask_settings`.
    "ILA (s0 = 4)": mask("adam", 0.01, 100, 4.0),
    "ILA (s0 = 0)": mask("adam", 0.01, 100, 0.0),
    "path integral": RankingMethod("path_integral", {"points": 4}),
    "midpoint": RankingMethod("path_integral", {"points": 1}),
    "midpoint, 25 % of stage 1": RankingMethod("path_integral", {"points": 1}, 0.25, records=32),
    "leave one out": RankingMethod("leave_one_out", records=32),
    "add one in": RankingMethod("add_one_in", records=32),
    "norm": RankingMethod("delta_norm"),
    "first step": RankingMethod("first_step", {}, None),
    "midpoint per parameter": RankingMethod("path_integral", {"points": 1}, by="density"),
    "midpoint, kinds first": RankingMethod("path_integral", {"points": 1}, by="kinds"),
}
"""Every scoring that is compared."""

MATCHED = ("ILA (s0 = 4)", "leave one out", "midpoint", "midpoint, 25 % of stage 1")
"""Those beside which random sets of their own kinds are trained; all others are judged by the common controls."""

DRAWS = 3
"""Random sets of the same size trained with every seed: the yardstick of all arms should be the least noisy."""


REFERENCE = "midpoint"
"""The ranking behind the controls that need one: reversed, depth only, kind only, same size."""


def bundled_task(data: str, steps: int = 60, model: str = "bundled:llama") -> Task:
    """A bundled model tuned on bundled data: alignment to a style of answering, mostly."""
    inputs = Inputs(model, f"bundled:{data}", records=1024, held_out=96, max_length=192)
    return Task(data, inputs, _training(steps), control="bundled:text")


def real_tasks() -> tuple[Task, ...]:
    """Real data on a small real model, where $KEYLAYERS_MODELS and $KEYLAYERS_DATA name folders that hold them."""
    if (places := real_data_folders()) is None:
        return ()
    models, data = places
    sets = {"alpaca": "alignment/alpaca_en_demo.json.gz", "gsm8k": "reasoning/gsm8k_train.jsonl.gz"}
    return tuple(
        Task(
            f"stories260K-{name}",
            Inputs(f"{models}/stories260K", f"{data}/{file}", records=900, held_out=128, max_length=192),
            _training(60),
        )
        for name, file in sets.items()
    )


def _training(steps: int) -> TrainSettings:
    return TrainSettings(steps=steps, batch_size=8, learning_rate=3e-3, save_every=10**9)
