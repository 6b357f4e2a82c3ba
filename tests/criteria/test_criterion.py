from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest

from keylayers import criteria
from keylayers.criteria.protocol import Criterion, Evidence, criterion, scored
from keylayers.criteria.random import Random
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.scores.provenance import Provenance
from tests import tiny_models
from tests.criteria.examples import evidence_of, lora_deltas, quadratic_evidence, suited

NEEDY = [name for name in criteria.CRITERIA if criteria.get(name).needs]


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_file_function_key_and_scores_carry_one_name(name: str) -> None:
    found = criteria.get(name)
    assert isinstance(found, Criterion) and found.name == name and found.compute.__name__ == f"score_{name}"
    assert found.compute.__module__ == f"keylayers.criteria.{name}"
    assert found.summary and found.settings().__dataclass_params__.frozen  # type: ignore[attr-defined]
    if found.images or found.labelled:
        evidence = evidence_of("cifar-resnet", every=6)
    else:
        evidence = evidence_of("llama") if found.granularities else quadratic_evidence()
    scores = found(evidence, suited(name, evidence))
    assert scores.criterion == name and scores.provenance.seconds is not None


def test_every_file_that_declares_a_criterion_is_in_the_register() -> None:
    import importlib
    import pkgutil

    modules = [
        importlib.import_module(f"{criteria.__name__}.{one.name}") for one in pkgutil.iter_modules(criteria.__path__)
    ]
    declared = {value.name for module in modules for value in vars(module).values() if isinstance(value, Criterion)}
    assert declared == criteria.CRITERIA.keys()


@pytest.mark.parametrize(("given", "near"), [("learnt_mask", "learned_mask"), ("path_integrals", "path_integral")])
def test_an_unknown_criterion_offers_the_nearest(given: str, near: str) -> None:
    for ask in (criteria.get, criteria.check):
        with pytest.raises(UnknownName, match=f"unknown criterion '{given}'; did you mean '{near}'"):
            ask(given)


@pytest.mark.parametrize("name", NEEDY)
def test_missing_evidence_is_named_with_the_flag_that_gives_it(name: str) -> None:
    found, evidence = criteria.get(name), quadratic_evidence()
    layers = evidence.deltas.layers
    said = {
        "model": r"a model to run \(`model`\)",
        "weights": r"a safetensors checkpoint \(`model`\)",
        "deltas": r"what tuning changed: .*\(`tuned`\), or data to train one on \(`data`\)",
        "data": r"data to score on \(`data`\)",
    }
    for need in found.needs:
        with pytest.raises(BadInput, match=rf"criterion '{name}' needs {said[need]}\.$"):
            found(replace(evidence, **{need: None}), layers)
    both = " and ".join([said[need] for need in said if need in found.needs][:2])
    with pytest.raises(BadInput, match=f"needs {both}"):
        found(Evidence(), layers)
    if "data" in found.needs:
        with pytest.raises(BadInput, match="data without a single batch"):
            found(replace(evidence, data=[]), layers)


def test_deltas_of_other_layers_are_refused() -> None:
    evidence = quadratic_evidence()
    layers = evidence.deltas.layers
    model = tiny_models.build("llama")
    blocks = named_layers(model, "block")
    linear = named_layers(model, "linear")
    other = Evidence(model=model, deltas=lora_deltas(model, linear), data=evidence.data)
    for name in NEEDY:
        found = criteria.get(name)
        if "deltas" not in found.needs:
            continue
        with pytest.raises(
            BadInput, match=r"asked for 2 layers, but the deltas are of 3, differing in third; make the"
        ):
            found(evidence, layers[:2])
        with pytest.raises(BadInput, match="in another order or with other parameters"):
            found(evidence, layers[::-1])
        with pytest.raises(
            BadInput, match=r"asked for 3 layers, .* of 22, differing in model\.layers\.0, model\.layers"
        ):
            found(other, blocks)


def test_layers_must_be_given_once_each() -> None:
    evidence = quadratic_evidence()
    layers = evidence.deltas.layers
    for name in criteria.CRITERIA:
        with pytest.raises(BadInput, match="there are no layers"):
            criteria.get(name)(evidence, [])
        with pytest.raises(BadInput, match="each layer may appear once"):
            criteria.get(name)(evidence, [*layers, layers[0]])


def test_settings_of_another_criterion_are_refused() -> None:
    evidence = quadratic_evidence()
    with pytest.raises(BadInput, match="'leave_one_out' takes LeaveOneOut as settings, got Random"):
        criteria.get("leave_one_out")(evidence, evidence.deltas.layers, Random())


def test_scores_say_where_they_come_from() -> None:
    evidence = quadratic_evidence(provenance=Provenance(model={"id": "m"}, data=({"id": "d", "records": 11},)))
    scores = criteria.get("path_integral")(evidence, evidence.deltas.layers)
    noted = scores.provenance
    assert noted.model == {"id": "m"} and noted.data == ({"id": "d", "records": 11},) and noted.device == "cpu"
    assert noted.settings["points"] == 8 and noted.settings["deltas"] == evidence.deltas.source != ""
    assert scores.granularity == "linear"
    with pytest.raises(FrozenInstanceError):
        evidence.model = None  # type: ignore[misc]


def test_a_criterion_is_a_function_and_what_it_needs() -> None:
    """CONTRIBUTING's promise: a new one is a settings class and a function."""

    @dataclass(frozen=True)
    class ByDepth:
        rising: bool = True

    @criterion("model", settings=ByDepth)
    def by_depth(evidence, layers, settings):
        """Position from the input, in layers."""
        values = np.arange(len(layers), dtype=float) * (1 if settings.rising else -1)
        return scored(evidence, layers, values, criterion="by_depth", settings=settings)

    evidence = quadratic_evidence(deltas=None, data=None)
    layers = named_layers(evidence.model, "linear")
    assert by_depth.summary == "Position from the input, in layers."
    assert by_depth(evidence, layers).values.tolist() == [0, 1, 2]
    scores = by_depth(evidence, layers, ByDepth(rising=False))
    assert scores.values.tolist() == [0, -1, -2] and scores.provenance.settings == {"rising": False}
    with pytest.raises(AssertionError, match="modell"):
        criterion("modell", settings=ByDepth)
