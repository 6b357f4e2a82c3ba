"""How much of the ILA study is run at every scale."""

from dataclasses import dataclass, field, replace

from keylayers.errors import UnknownName
from keylayers.papers.ila.early_choice import EarlyChoicePlan
from keylayers.papers.ila.reasoning import ReasoningPlan
from keylayers.papers.ila.share_sweep import ShareSweepPlan
from keylayers.papers.ila.stability import StabilityPlan
from keylayers.papers.ila.tasks import MATCHED, WAYS, bundled_task, real_tasks
from keylayers.papers.ila.transfer import TransferPlan
from keylayers.studies.arms import Budget
from keylayers.studies.retraining import LearningRateGrid
from keylayers.studies.text_task import Task


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    tasks: tuple[Task, ...]
    seeds: int = 5
    """Each is a procedure of its own: stage 1, scores, retraining."""
    budget: Budget = field(default_factory=lambda: Budget(0.3))
    all_rates: LearningRateGrid = field(default_factory=LearningRateGrid)
    """Offered to a training of all layers, and so to stage 1."""
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2, 3e-2)))
    """Offered to every choice of layers; 3e-3, tried by all arms of one task and many of another, was never best."""
    ways: tuple[str, ...] = tuple(WAYS)
    matched: tuple[str, ...] = MATCHED
    stability: StabilityPlan | None = field(default_factory=StabilityPlan)
    sweep: ShareSweepPlan | None = field(default_factory=ShareSweepPlan)
    frugal: EarlyChoicePlan | None = field(default_factory=EarlyChoicePlan)
    reasoning: ReasoningPlan | None = field(default_factory=ReasoningPlan)
    transfer: TransferPlan | None = field(default_factory=TransferPlan)


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    if name == "smoke":
        task = replace(bundled_task("pirate", steps=20), control=None)
        ways = ("ILA (s0 = 4)", "midpoint", "first step")
        asked = Scale(
            (task,),
            seeds=2,
            all_rates=LearningRateGrid((1e-2,)),
            rates=LearningRateGrid((1e-2,)),
            ways=ways,
            matched=("midpoint",),
        )
        return replace(asked, stability=None, sweep=None, frugal=None, reasoning=None, transfer=None)
    if name == "small":
        return Scale((bundled_task("pirate"), *real_tasks()[:1], bundled_task("formal")))
    if name == "full":
        return Scale((*map(bundled_task, ("pirate", "formal", "json", "terse", "bullets")), *real_tasks()), seeds=10)
    raise UnknownName("scale", name, ("smoke", "small", "full"))
