"""What the study of layers for mathematics asks, and how much of it at every scale."""

from dataclasses import dataclass

from keylayers.errors import BadInput, UnknownName
from keylayers.models.sources import BUNDLED_MODELS
from keylayers.papers.math_layers.cells import VARIANTS
from keylayers.papers.math_layers.post_training import Tuning
from keylayers.training.trainer import TrainSettings

LEAST_SEEDS = 3


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    bases: tuple[str, ...]
    """Models pre-trained independently of each other, two or more."""
    families: tuple[str, ...]
    """Those of them that variants are made of."""
    tuning: Tuning
    teacher: str = "bundled:llama"
    """Base that is taught longer chains, and then teaches every family."""
    kinds: tuple[str, ...] = VARIANTS
    seeds: int = 5
    """Each has its own records (people, chains), its own training of every variant, and its own clusters."""
    records: int = 40
    """Single steps, and facts, of a seed; half as many whole chains."""
    clusters: int = 20
    tokens: int = 2000
    """Clustered, of whole chains."""

    def __post_init__(self) -> None:
        if len(set(self.bases)) < 2 or not set(self.families) <= set(self.bases) or not self.families:
            raise BadInput(
                f"bases {self.bases} and families {self.families}: expected two different bases or more, and one "
                "family or more among them; otherwise there is nothing to compare a variant's likeness with."
            )
        if self.seeds < LEAST_SEEDS:
            raise BadInput(
                f"{self.seeds} seeds: expected at least {LEAST_SEEDS}, without which no interval is bounded."
            )
        if unknown := sorted(set(self.kinds) - set(VARIANTS)):
            raise UnknownName("variant", unknown[0], VARIANTS)


def bundled_bases() -> tuple[str, ...]:
    """The bundled models that are there."""
    return tuple(
        f"bundled:{name}" for name, folder in BUNDLED_MODELS.items() if (folder / "model.safetensors").is_file()
    )


def tuning(steps: int = 240, rewarded: int = 150, answers: int = 64, written: int = 512) -> Tuning:
    """Trainings of so many steps; the teacher's is as long as that on instructions."""

    def stage(steps: int, rate: float, batch: int) -> TrainSettings:
        return TrainSettings(steps=steps, batch_size=batch, learning_rate=rate, schedule="cosine", save_every=10**9)

    return Tuning(
        instructions=stage(steps, 1e-3, 16),
        teacher=stage(steps, 1e-3, 16),
        distillation=stage(max(1, steps // 2), 1e-3, 16),
        # 60 steps at 3e-4 that stood still lowered the cost of none of 4 bases measurably in 3 seeds: so no variant by
        # reward could be judged, whatever its blocks
        reward=stage(rewarded, 2e-4, answers),
        written=written,
    )


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    if name == "smoke":
        bases = ("bundled:llama", "bundled:llama-again", "bundled:llama-narrow")
        quick = tuning(steps=40, rewarded=24, answers=64, written=64)
        return Scale(bases, bases[:1], quick, teacher=bases[2], seeds=3, records=32, tokens=400)
    if name == "small":
        return Scale(bundled_bases(), bundled_bases(), tuning())
    if name == "full":
        return Scale(
            bundled_bases(),
            bundled_bases(),
            tuning(steps=600, rewarded=200, answers=128, written=1024),
            seeds=10,
            records=20,
        )
    raise UnknownName("scale", name, ("smoke", "small", "full"))
