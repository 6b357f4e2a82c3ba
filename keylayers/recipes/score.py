"""Score a model's layers on a data set: learn or load what tuning changes, then ask each criterion."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from keylayers.criteria.protocol import Criterion, Evidence
from keylayers.criteria.support.observers import ObservingCriterion, observe_together
from keylayers.errors import BadInput, KeylayersError
from keylayers.layers.layer import Layer
from keylayers.recipes.early_stopping import settling_of
from keylayers.recipes.early_stopping_text import as_provenance
from keylayers.recipes.evidence import gathered
from keylayers.recipes.score_request import ScoreRequest, checked
from keylayers.runs import Progress, RunFolder
from keylayers.scores import LayerScores
from keylayers.scores.files import load, save


def score_layers(request: ScoreRequest, run: RunFolder) -> dict[str, LayerScores]:
    """Scores by criterion name; each is also in the run folder as NAME.json, where a repeated call finds it.

    Raises:
        UnknownName, BadInput: before anything is loaded, if a criterion, a setting or the data cannot be used.
    """
    # deviates: the paper learns masks on the tuning data; here on calibration records, disjoint from it, because scores
    # that are learnt where the deltas were fitted favour the layers that overfit.
    asked = checked(request)
    chosen, options = asked.criteria, asked.settings
    files = {name: run.path / f"{name}.json" for name in chosen}
    done = {name: _stored(file) for name, file in files.items() if file.exists()}
    missing = {name: criterion for name, criterion in chosen.items() if name not in done}
    if missing:
        # of all criteria, not the missing ones: what is looked at also decides which layers are candidates
        needs = frozenset[str]().union(*(criterion.needs for criterion in chosen.values()))

        def fit(layers: Sequence[Layer], batches: int) -> None:
            for name, criterion in missing.items():
                criterion.check_fit(layers, options[name], batches)

        evidence, layers = gathered(asked.request, run, needs, fit)
        observed = _observed(evidence, layers, missing, options)
        for name, criterion in missing.items():
            if name in observed:
                result = observed[name]
            else:
                with Progress[int](1, name) as bar:
                    result = criterion(_with_progress(evidence, bar), layers, options[name])
            if "deltas" in criterion.needs and (found := settling_of(run.path)) is not None:
                settings = {**result.provenance.settings, "stage_one": as_provenance(found)}
                result = replace(result, provenance=replace(result.provenance, settings=settings))
            save(result, files[name])
            done[name] = result
            run.log("scored", criterion=name, seconds=result.provenance.seconds)
    return {name: done[name] for name in chosen}


def _stored(file: Path) -> LayerScores:
    """The scores that an earlier session stored. Raises BadInput if they are damaged."""
    try:
        return load(file)
    except KeylayersError as error:
        raise BadInput(
            f"scores that this run stored are not what was written ({error})",
            f"delete {str(file)!r} to have them computed again",
            "start over with `fresh`",
        ) from error


def _observed(
    evidence: Evidence, layers: tuple[Layer, ...], missing: Mapping[str, Criterion], options: Mapping[str, Any]
) -> dict[str, LayerScores]:
    """Scores of the criteria that only look at hidden states, all from one pass over the data."""
    asked = {
        name: (criterion, options[name])
        for name, criterion in missing.items()
        if isinstance(criterion, ObservingCriterion)
    }
    if not asked:
        return {}
    with Progress[int](1, ", ".join(asked)) as bar:
        return observe_together(_with_progress(evidence, bar), layers, asked)


def _with_progress(evidence: Evidence, bar: Any) -> Evidence:
    """The evidence with its progress shown by a bar, whose total the criterion says."""

    def report(step: int, steps: int, loss: float) -> None:
        bar.total = steps
        bar.advance(step - bar.done, text=f"loss {loss:.3f}" if loss else "")

    return replace(evidence, progress=report)
