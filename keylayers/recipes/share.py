"""Choose how many layers to train: the fewest whose changes keep a stated part of what tuning gained."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from keylayers.axes import LayerMask
from keylayers.data.splits import assert_disjoint
from keylayers.data.tokenisation import Examples
from keylayers.inputs.reachable import scores_within_reach
from keylayers.inputs.scores_fit import check_scores_fit
from keylayers.inputs.text import Inputs, prepare_data, require_unseen, tuned_place
from keylayers.layers.gating import gated
from keylayers.measures.gain_curve import GainCurve, between, bound_gains, clear_gain, grid
from keylayers.measures.loss import ExampleLosses, example_losses
from keylayers.models import deltas_of
from keylayers.runs import Progress, RunFolder, note, read_run
from keylayers.scores import LayerScores, select
from keylayers.scores.random_draws import DRAWS, draw_kinds
from keylayers.settings import Count, Inside, Natural, Seed, Settings

TRAINING = 16  # training records read: none is used, but preparing data wants some


@dataclass(frozen=True)
class ShareRequest(Settings):
    """Whose changes are kept, and how much of the gain has to stay."""

    tuned: str
    """A tuned checkpoint, a peft adapter or an earlier run."""
    inputs: Inputs
    within: Inside = 0.05
    """Part of the gain that may be lost."""
    points: Annotated[int, Ge(2)] = 9
    """Sizes on the first grid, from 1 to all layers."""
    halvings: Natural = 3
    """Further sizes, each halfway between the chosen one and the next smaller."""
    draws: Annotated[int, Ge(DRAWS)] = DRAWS
    """Random orders of the same kinds beside the ranking."""
    seed: Seed = 0
    batch_size: Count = 16


@dataclass(frozen=True)
class Share:
    """How many layers are enough, and how that number fared on records that did not choose it."""

    k: int | None
    """None: no set of layers measured keeps as much."""
    calibration: GainCurve
    """All sizes; these records chose k."""
    test: GainCurve | None
    """The chosen size alone, on other records."""
    data: tuple[dict[str, Any], ...]
    """What both sets of records were."""
    elsewhere: int
    """Changed parameters outside the scored layers: the full gain has their changes, no set of layers keeps them."""
    unchanged: int
    """Scored layers that tuning left alone."""

    @property
    def policy(self) -> str | None:
        """The choice as a policy."""
        return None if self.k is None else f"top:{self.k}"


def choose_share(request: ShareRequest, run: RunFolder, scores: LayerScores) -> Share:
    """Measures the gain curve on calibration records, chooses, and judges the choice on test records; forwards only.

    Each model measured is kept in the run folder as a part, where a repeated call finds it.

    Raises:
        BadScores: if the scores are of another model. BadInput: if the data or the tuned model cannot be used, or
            tuning gained nothing that these records show.
    """
    splits = replace(request.inputs, records=TRAINING).load_splits()
    assert_disjoint(splits.calibration, splits.test)
    place = tuned_place(request.tuned)
    outline = request.inputs.outline()
    if outline is not None:  # before its weights are loaded
        check_scores_fit(scores, outline.model, request.inputs.model)
    data = None if outline is None else prepare_data(request.inputs, outline, splits)
    loaded = request.inputs.load_model()
    if data is None:
        check_scores_fit(scores, loaded.model, request.inputs.model)
        data = prepare_data(request.inputs, loaded, splits)
    require_unseen(loaded, data)
    _note_origins(request, scores)
    scores = scores_within_reach(loaded.model, scores, data.calibration)
    deltas = deltas_of(loaded.model, place, scores.layers, **request.inputs.trust)
    for text in deltas.notes:
        note(text)
    gates, rest = deltas.uniform(0.0), torch.zeros(())
    with gated(loaded.model, deltas, lambda: gates, rest) as model:
        work = _Work(request, run, scores, model, gates, rest)
        calibration, test = _Records("calibration", data.calibration), _Records("test", data.test)
        for records in (calibration, test):  # before the long part: is there a gain at all?
            clear_gain(*work.ends(records), f"{records.name} records")
        found, judged = _search(request, work, calibration, test)
    return Share(
        found.smallest(request.within),
        found,
        judged,
        tuple(
            {"id": request.inputs.data, "split": part.split, "sha256": part.sha256, "records": len(part)}
            for part in (splits.calibration, splits.test)
        ),
        len(deltas.remainder),
        sum(not change for change in deltas.changes),
    )


def settings_of(request: ShareRequest, scores: LayerScores) -> dict[str, Any]:
    """What tells one run from another, beside the contents of what is read."""
    return {**asdict(request), "scores": scores.sha256}


def _search(
    request: ShareRequest, work: "_Work", calibration: "_Records", test: "_Records"
) -> tuple[GainCurve, GainCurve | None]:
    """The curve on a grid and between its points, and the chosen point on test records."""
    sizes = grid(len(work.scores.layers), request.points)
    steps = (len(sizes) + request.halvings + 1) * (1 + request.draws)
    with Progress[int](steps, "gain curve") as bar:
        found = work.curve(calibration, sizes, bar)
        for _ in range(request.halvings):
            middle = between(found, request.within)
            if middle is None:
                break
            sizes = (*sizes, middle)
            found = work.curve(calibration, sizes, bar)
        chosen = found.smallest(request.within)
        judged = None if chosen is None else work.curve(test, (chosen,), bar)
        bar.advance(steps - bar.done)  # fewer than planned: the largest size needs no random sets
    return found, judged


@dataclass(frozen=True)
class _Records:
    name: str
    examples: Examples


@dataclass(frozen=True, eq=False)
class _Work:
    """What every measurement shares: the model, whose gates are set before each."""

    request: ShareRequest
    run: RunFolder
    scores: LayerScores
    model: nn.Module
    gates: Tensor
    rest: Tensor
    """The gate of the changes outside the scored layers."""
    done: dict[str, ExampleLosses] = field(default_factory=dict)

    def ends(self, records: _Records) -> tuple[ExampleLosses, ExampleLosses]:
        """With no change, and with every change."""
        nothing = np.zeros(len(self.scores.layers), dtype=np.bool_)
        return self.losses(records, "base", nothing), self.losses(records, "tuned", ~nothing, rest=1.0)

    def curve(self, records: _Records, sizes: Iterable[int], bar: Any) -> GainCurve:
        """The gain curve at those sizes; what was measured before is not measured again."""
        kept, random = {}, {}
        for k in sizes:
            kept[k], *random[k] = [self.losses(records, *one, bar=bar) for one in self.sets(k).items()]
        count, what = len(self.scores.layers), f"{records.name} records"
        return bound_gains(*self.ends(records), kept, random, layers=count, what=what)

    def sets(self, k: int) -> dict[str, LayerMask]:
        """The layers kept at that size: the most critical, and as many of each random order of the same kinds."""
        layers = self.scores.layers
        top = select(self.scores, f"top:{k}", allow_total=True).mask
        if k == len(layers):
            return {f"top-{k}": top}
        kinds, first = [layer.kind for layer in layers], self.request.seed
        draws = range(first, first + self.request.draws)  # one seed is one order: its sets grow with k
        return {f"top-{k}": top} | {f"random-{k}-seed{seed}": draw_kinds(kinds, top, seed) for seed in draws}

    def losses(
        self, records: _Records, label: str, mask: LayerMask, rest: float = 0.0, bar: Any = None
    ) -> ExampleLosses:
        """What each record costs with the changes of the masked layers alone; a part of the run."""

        def compute() -> dict[str, Any]:
            self.gates.copy_(torch.tensor(mask))
            self.rest.fill_(rest)
            found = example_losses(self.model, records.examples, batch_size=self.request.batch_size)
            return {"nats": found.nats.tolist(), "tokens": found.tokens.tolist(), "origins": list(found.origins)}

        name = f"{records.name}-{label}"
        if name not in self.done:
            kept = self.run.part(name, compute)
            nats, tokens = np.array(kept["nats"], dtype=np.float64), np.array(kept["tokens"], dtype=np.int64)
            self.done[name] = ExampleLosses(nats, tokens, tuple(kept["origins"]))
            if bar is not None:
                bar.advance(text=label)
        return self.done[name]


def _note_origins(request: ShareRequest, scores: LayerScores) -> None:
    """Says on standard error where scores, tuned model and data may not belong together."""
    learnt = sorted({str(entry.get("id")) for entry in scores.provenance.data})
    if learnt and request.inputs.data not in learnt:
        note(f"the scores are of {', '.join(learnt)}, the curve is of {request.inputs.data}")
    if not (Path(request.tuned) / "run.json").is_file():
        note("make sure that the tuned model was not trained on these calibration and test records")
        return
    stored = read_run(request.tuned).get("settings", {}).get("inputs", {})
    for key in ("data", "split_seed"):
        asked = getattr(request.inputs, key)
        if stored.get(key) != asked:
            note(
                f"the tuned model's run has {key} {stored.get(key)!r}, here it is {asked!r}: make sure that it was not "
                "trained on these calibration and test records"
            )
