"""Criteria that only look at hidden states: accumulators which share one capture pass over the data."""

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float

from keylayers.criteria import PREFIX
from keylayers.criteria.protocol import Criterion, CriterionSettings, Evidence, Fitting, scored
from keylayers.criteria.support.batch_groups import groups_of
from keylayers.criteria.support.cost import Counting, Work
from keylayers.criteria.support.hidden_states import HiddenStates, stacks_of
from keylayers.errors import BadInput
from keylayers.layers.capturing import capture
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensor_swap import frozen
from keylayers.scores.checks import checked_layers
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network in forward order, all of them, whichever are scored."""

    layers: tuple[Layer, ...]
    stacks: tuple[int, ...]
    """Of each block the stack it lies in: an encoder's and a decoder's blocks have different streams."""

    def neighbours(self, block: int, reach: int) -> list[int]:
        """Other blocks of the same stack, at most `reach` away."""
        return [
            other
            for other in range(block - reach, block + reach + 1)
            if other != block and 0 <= other < len(self.layers) and self.stacks[other] == self.stacks[block]
        ]


@dataclass(frozen=True)
class Observed:
    """What an observer found, one value per block."""

    values: Float[np.ndarray, " blocks"]
    repeats: Float[np.ndarray, "repeats blocks"] | None = None
    bounds: Float[np.ndarray, "blocks 2"] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Joins the settings in the scores' provenance."""


class Observer(Protocol):
    """Sees batch after batch, keeps what it needs, and says the scores at the end."""

    def observe(self, seen: HiddenStates) -> None:
        """One batch; what it holds is gone after the call."""

    def finish(self) -> Observed:
        """Scores of all blocks."""


Making = Callable[[Evidence, Blocks, Any], Observer]
"""(evidence, blocks of the model, settings) -> a fresh observer."""


@dataclass(frozen=True)
class ObservingCriterion(Criterion):
    """A criterion whose scores come from an observer; several together take one pass."""

    observer: Making | None = None
    granularities: tuple[str, ...] = ("block",)


def one_pass(layers: Sequence[Layer], settings: Any, batches: int) -> Work:
    """Every block once for every batch, without the output head."""
    return Work(batches, 0)


def observing(
    *, settings: type[CriterionSettings], work: Counting = one_pass, fits: Fitting | None = None
) -> Callable[[Making], ObservingCriterion]:
    """Declares a function `score_NAME` that makes an observer as the criterion NAME."""

    def declare(making: Making) -> ObservingCriterion:
        name = making.__name__.removeprefix(PREFIX)

        @functools.wraps(making)
        def compute(evidence: Evidence, layers: Sequence[Layer], settings: Any) -> LayerScores:
            return observe_together(evidence, layers, {name: (made, settings)})[name]

        summary = (inspect.getdoc(making) or "").split("\n")[0]
        made = ObservingCriterion(
            name, compute, frozenset({"model", "data"}), settings, summary, work, fits=fits, observer=making
        )
        return made

    return declare


def observe_together(
    evidence: Evidence, layers: Sequence[Layer], asked: Mapping[str, tuple[ObservingCriterion, Any]]
) -> dict[str, LayerScores]:
    """Scores by name, all from one forward pass per batch that ends at the last block; each bears an equal share of the
    pass's seconds. Memory: the hidden states of one batch at every block, and what each observer keeps.

    Raises:
        BadInput: if evidence is missing, or a layer asked for is no block.
    """
    layers = checked_layers(layers, BadInput)
    for criterion, _ in asked.values():
        criterion._check(evidence, layers)
    assert evidence.model is not None and evidence.data is not None
    found = named_layers(evidence.model, "block")
    places = _places(found, layers, evidence, tuple(asked))
    spent = dict.fromkeys(asked, 0.0)
    start = time.perf_counter()
    with frozen(evidence.model), torch.no_grad():
        blocks = Blocks(found, stacks_of(evidence.model, found))
        observers: dict[str, Observer] = {}
        for name, (criterion, settings) in asked.items():
            assert criterion.observer is not None
            with _timed(spent, name):
                observers[name] = criterion.observer(evidence, blocks, settings)
        for done, batch in enumerate(evidence.data, 1):
            with capture(evidence.model, found, stop=True) as captured:
                evidence.loss(evidence.model, batch)
            seen = HiddenStates(evidence.model, batch, found, captured)
            for name, observer in observers.items():
                with _timed(spent, name):
                    observer.observe(seen)
            if evidence.progress:
                evidence.progress(done, len(evidence.data), 0.0)
        results: dict[str, Observed] = {}
        for name, observer in observers.items():
            with _timed(spent, name):
                results[name] = observer.finish()
    shared = (time.perf_counter() - start - sum(spent.values())) / len(asked)
    return {
        name: _as_scores(evidence, layers, places, name, asked[name][1], result, spent[name] + shared)
        for name, result in results.items()
    }


class _timed:
    """Adds the seconds of a piece of work to an account."""

    def __init__(self, account: dict[str, float], name: str) -> None:
        self.account, self.name = account, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.account[self.name] += time.perf_counter() - self.start


def _places(found: Sequence[Layer], layers: Sequence[Layer], evidence: Evidence, names: Sequence[str]) -> list[int]:
    """Where in the list of blocks each layer asked for is."""
    place = {layer.name: index for index, layer in enumerate(found)}
    others = [layer.name for layer in layers if layer.name not in place]
    if others:
        raise BadInput(
            f"{', '.join(names)} can score blocks alone, but {others[0]} is a layer of granularity "
            f"{evidence.granularity!r}",
            "score with `granularity=block`",
        )
    return [place[layer.name] for layer in layers]


def _as_scores(
    evidence: Evidence,
    layers: Sequence[Layer],
    places: list[int],
    name: str,
    settings: Any,
    result: Observed,
    seconds: float,
) -> LayerScores:
    repeats = None if result.repeats is None else result.repeats[:, places]
    made = scored(
        evidence, layers, result.values[places], criterion=name, settings=settings, repeats=repeats, **result.notes
    )
    made = replace(made, provenance=replace(made.provenance, seconds=round(seconds, 3)))
    return made if result.bounds is None else replace(made, bounds=result.bounds[places])


class Means:
    """Means over tokens or samples, per block, with repeats from groups of batches as all criteria have them."""

    def __init__(self) -> None:
        self._sums: list[Float[np.ndarray, " blocks"]] = []
        self._counts: list[Float[np.ndarray, " blocks"]] = []

    def add(self, sums: Sequence[float], counts: Sequence[int]) -> None:
        """Of one batch."""
        self._sums.append(np.array(sums, dtype=np.float64))
        self._counts.append(np.array(counts, dtype=np.float64))

    def finish(self) -> tuple[Float[np.ndarray, " blocks"], Float[np.ndarray, "repeats blocks"] | None]:
        """The means over all batches, and within each group of them where there are two or more.

        Raises:
            BadInput: if nothing was counted.
        """
        sums, counts = np.stack(self._sums), np.stack(self._counts)
        if not counts.sum(0).all():
            raise BadInput("the data has no position to count: every one is padding; give records with text in them.")
        groups = [group for group in groups_of(len(sums)) if counts[group].sum(0).all()]
        repeats = np.stack([sums[group].sum(0) / counts[group].sum(0) for group in groups])
        return sums.sum(0) / counts.sum(0), repeats if len(groups) > 1 else None
