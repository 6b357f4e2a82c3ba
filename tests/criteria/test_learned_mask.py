import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from keylayers.criteria.learned_mask import LearnedMask, score_learned_mask
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput, Diverged, UnknownName
from keylayers.maths.gates import expected_open, soft_top_k
from keylayers.runs.checkpoint import Checkpoint
from keylayers.scores import Provenance
from tests.criteria.examples import Quadratic, evidence_of, mean_loss, quadratic_evidence

SINGLE = quadratic_evidence(data=quadratic_evidence().data[1:])  # one batch, so that every step sees the same
LAYERS = SINGLE.deltas.layers
TRUTH = Quadratic(SINGLE)


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))


def learnt(evidence: Evidence = SINGLE, **settings: object) -> np.ndarray:
    return score_learned_mask(evidence, evidence.deltas.layers, LearnedMask(**settings)).values


@pytest.mark.parametrize("kind", ["lora", "dense"])
@pytest.mark.parametrize("initial", [4.0, 0.0])
def test_the_first_step_follows_the_slope_of_the_loss(kind: str, initial: float) -> None:
    """s1 - s0 = -rate * dL/dgate * sigmoid'(s0), dL/dgate by central differences on a copy changed by hand; the
    changes outside the layers stay on in full."""
    evidence = evidence_of("gpt2", kind, double=True)
    evidence = replace(evidence, data=evidence.data[:1])
    gate, count, h = float(sigmoid(initial)), len(evidence.deltas.layers), 1e-4
    scores = learnt(evidence, initial=initial, optimiser="sgd", learning_rate=1e3, steps=1)
    for column in (0, 5, count - 1):
        up, down = ([gate + shift * (index == column) for index in range(count)] for shift in (h, -h))
        slope = (mean_loss(evidence, up, 1.0) - mean_loss(evidence, down, 1.0)) / (2 * h)
        assert (initial - scores[column]) / 1e3 == pytest.approx(slope * gate * (1 - gate), rel=2e-4, abs=1e-8)


def test_sgd_follows_the_written_out_recursion() -> None:
    s = np.full(3, 0.5)
    for _ in range(6):
        s = s - 0.7 * TRUTH.gradient(sigmoid(s)) * sigmoid(s) * (1 - sigmoid(s))
    np.testing.assert_allclose(learnt(initial=0.5, optimiser="sgd", learning_rate=0.7, steps=6), s, rtol=1e-5)


def test_adam_follows_the_written_out_recursion() -> None:
    s, mean, square = np.full(3, 0.5), np.zeros(3), np.zeros(3)
    for step in range(1, 8):
        gradient = TRUTH.gradient(sigmoid(s)) * sigmoid(s) * (1 - sigmoid(s))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        s = s - 0.05 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(learnt(initial=0.5, optimiser="adam", learning_rate=0.05, steps=7), s, rtol=1e-5)


def test_top_k_moves_along_gates_of_constant_sum() -> None:
    """The gradient through the soft top-k, by central differences of the closed form: soft_top_k by its own solver."""
    start, h, rate = np.full(3, 4.0), 1e-5, 5.0

    def loss(s: np.ndarray) -> float:
        return TRUTH.loss(soft_top_k(torch.from_numpy(s), 0.4 * 3).numpy())

    slope = np.array([(loss(start + h * one) - loss(start - h * one)) / (2 * h) for one in np.eye(3)])
    scores = learnt(initial=4.0, budget="top_k", share=0.4, learning_rate=rate, steps=1)
    np.testing.assert_allclose((start - scores) / rate, slope, rtol=1e-4)
    assert abs(slope.sum()) < 1e-8  # no direction that would open all gates together


def test_l0_adds_the_expected_number_of_open_gates() -> None:
    """Same noise, two penalties: the first steps differ by the penalty's slope alone."""
    rate, penalty = 2.0, 0.6
    free, priced = (
        learnt(initial=0.3, budget="l0", penalty=price, optimiser="sgd", learning_rate=rate, steps=1)
        for price in (0.0, penalty)
    )
    s = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    expected_open(s).backward()
    np.testing.assert_allclose((free - priced) / rate, penalty * s.grad.numpy() / 3, rtol=1e-5)


def test_initial_and_steps_do_what_they_say() -> None:
    told: list[tuple[int, int, float]] = []
    evidence = replace(SINGLE, progress=lambda *one: told.append(one))
    still = learnt(evidence, initial=-1.25, learning_rate=0.0, steps=5)
    np.testing.assert_array_equal(still, [-1.25] * 3)
    assert [one[:2] for one in told] == [(step, 5) for step in range(1, 6)]
    assert told[0][2] == pytest.approx(TRUTH.loss(sigmoid(np.full(3, -1.25))), rel=1e-5)  # per row, gates at s0


def test_seeds_are_independent_runs_behind_one_mean() -> None:
    evidence = quadratic_evidence()
    both = score_learned_mask(evidence, LAYERS, LearnedMask(seeds=2, seed=3, steps=3, learning_rate=0.3))
    alone = [learnt(evidence, seed=seed, steps=3, learning_rate=0.3) for seed in (3, 4)]
    np.testing.assert_array_equal(both.repeats, alone)
    np.testing.assert_allclose(both.values, np.mean(alone, axis=0), rtol=1e-6)
    one = score_learned_mask(evidence, LAYERS, LearnedMask(steps=3))
    assert one.repeats is None and one.provenance.seed == 0


def watched(evidence: Evidence) -> tuple[Evidence, list[int]]:
    """The evidence with the rows of each batch its loss sees."""
    seen: list[int] = []

    def loss(model, batch):
        seen.append(len(batch["x"]))
        return evidence.loss(model, batch)

    return replace(evidence, loss=loss), seen


def test_each_epoch_sees_every_batch_once_in_an_order_of_its_own() -> None:
    data = [{"x": torch.ones(rows, 5).double(), "y": torch.ones(rows, 3).double()} for rows in range(1, 7)]
    evidence, seen = watched(replace(SINGLE, data=data))
    learnt(evidence, steps=18)
    epochs = [seen[at : at + 6] for at in (0, 6, 12)]
    assert all(sorted(epoch) == [1, 2, 3, 4, 5, 6] for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    again, second = watched(replace(SINGLE, data=data))
    learnt(again, steps=18, seed=1)
    assert second != seen


def test_global_random_numbers_have_no_say() -> None:
    settings = {"budget": "l0", "initial": 0.0, "learning_rate": 0.2, "steps": 4}
    torch.manual_seed(1)
    first = learnt(**settings)
    torch.manual_seed(2)
    np.testing.assert_array_equal(learnt(**settings), first)
    assert not np.array_equal(learnt(**settings, seed=1), first)


class Interrupted(Exception):
    """Stands for Ctrl-C, a full disk, a lost machine."""


def stopping(evidence: Evidence, after: int) -> Evidence:
    """The evidence with a loss that fails at its call number `after` (from 0)."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        if calls == after:
            raise Interrupted
        calls += 1
        return evidence.loss(model, batch)

    return replace(evidence, loss=loss)


def kept_in(folder: Path) -> Callable[[str], Checkpoint]:
    return lambda name: Checkpoint(folder / name)


VARIANTS = [
    {"optimiser": "adam"},
    {"optimiser": "sgd", "learning_rate": 0.3},
    {"budget": "l0", "initial": 0.0},
    {"budget": "top_k", "share": 0.5},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=["adam", "sgd", "l0", "top_k"])
@pytest.mark.parametrize("stops", [(0,), (1,), (2,), (3,), (6,), (8,), (3, 2), (5, 1, 4)])
def test_a_resumed_run_gives_the_scores_of_an_uninterrupted_one(
    variant: dict[str, object], stops: tuple[int, ...], tmp_path: Path
) -> None:
    """Bit for bit, over two seeds of 5 steps with a state every second, stopped once or several times."""
    evidence = quadratic_evidence()
    settings = LearnedMask(**{"steps": 5, "seeds": 2, "save_every": 2, "learning_rate": 0.05, **variant})
    whole = score_learned_mask(evidence, LAYERS, settings)
    keeping = replace(evidence, checkpoint=kept_in(tmp_path))
    for after in stops:
        with pytest.raises(Interrupted):
            score_learned_mask(stopping(keeping, after), LAYERS, settings)
    resumed = score_learned_mask(keeping, LAYERS, settings)
    np.testing.assert_array_equal(resumed.repeats, whole.repeats)
    np.testing.assert_array_equal(resumed.values, whole.values)


def test_resuming_repeats_no_step_that_was_kept(tmp_path: Path) -> None:
    keeping = replace(quadratic_evidence(), checkpoint=kept_in(tmp_path))
    settings = LearnedMask(steps=6, save_every=2)
    with pytest.raises(Interrupted):
        score_learned_mask(stopping(keeping, 5), LAYERS, settings)
    evidence, seen = watched(keeping)
    first = score_learned_mask(evidence, LAYERS, settings)
    assert len(seen) == 2  # steps 5 and 6: the state after step 4 was kept
    again = score_learned_mask(evidence, LAYERS, settings)
    assert len(seen) == 2 and np.array_equal(again.values, first.values)
    longer = score_learned_mask(evidence, LAYERS, replace(settings, steps=9))
    np.testing.assert_array_equal(longer.values, learnt(quadratic_evidence(), steps=9))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"initial": 4.0}, r"initial \(stored 0\.0, given 4\.0\)"),
        ({"optimiser": "adam", "learning_rate": 3.0}, r"optimiser \(stored 'sgd', given 'adam'\)"),
        ({"steps": 2}, r"steps \(stored 4, given 2\)"),
    ],
)
def test_a_state_of_another_run_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    keeping = replace(quadratic_evidence(), checkpoint=kept_in(tmp_path))
    learnt(keeping, steps=4)
    with pytest.raises(BadInput, match=f"the state kept here is of another run: {said}; score into another folder"):
        learnt(keeping, **{"steps": 4, **change})


def test_a_state_of_other_layers_or_data_is_refused(tmp_path: Path) -> None:
    keeping = replace(quadratic_evidence(), checkpoint=kept_in(tmp_path))
    learnt(keeping, steps=2)
    with pytest.raises(BadInput, match=r"batches \(stored 2, given 1\)"):
        learnt(replace(keeping, data=keeping.data[:1]), steps=2)
    deltas = keeping.deltas
    fewer = replace(deltas, layers=deltas.layers[:1], changes=deltas.changes[:1])
    with pytest.raises(BadInput, match=r"layers \(stored 3, given 1\)"):
        learnt(replace(keeping, deltas=fewer), steps=2)


class Poison(torch.autograd.Function):
    """Passes a tensor on and spoils its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_step(value: float, tmp_path: Path) -> None:
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        summed, rows = SINGLE.loss(model, batch)
        return summed * (value if calls == 6 else 1.0), rows

    evidence = replace(SINGLE, loss=loss, checkpoint=kept_in(tmp_path))
    with pytest.raises(Diverged, match=rf"learned_mask: the loss at step 5 is {value}; .*lower the learning rate"):
        learnt(evidence, steps=9, save_every=2)
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["000000002.safetensors", "000000004.safetensors"]  # whole states from before, nothing half-written
    step, tensors, _ = Checkpoint(tmp_path / "learned_mask-0").load()
    assert step == 4 and all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("budget", ["none", "top_k", "l0"])
def test_a_gradient_that_is_not_finite_names_step_and_layer(budget: str, tmp_path: Path) -> None:
    """One layer's alone: under a budget its NaN would reach every score, so it is looked for at the gates."""
    evidence = quadratic_evidence(checkpoint=kept_in(tmp_path))
    evidence.model.second.register_forward_hook(lambda module, args, output: Poison.apply(output))
    with pytest.raises(Diverged, match=r"gradient of layer second is not finite at step 0; compute in fp32"):
        learnt(evidence, budget=budget, steps=3, save_every=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_batch_without_supervised_tokens_is_refused() -> None:
    evidence = evidence_of("llama")
    data = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in evidence.data]
    with pytest.raises(BadInput, match="no supervised token"):
        learnt(replace(evidence, data=data), steps=1)


def test_it_stops_at_rest_where_asked_resumed_or_not(tmp_path: Path) -> None:
    """Slopes shrink as gates near 0 and 1: the moves of a window fall below any bound."""
    settings = LearnedMask(steps=400, optimiser="sgd", learning_rate=20.0, initial=0.0, rest=0.004, save_every=20)
    whole = score_learned_mask(SINGLE, LAYERS, settings)
    (losses,), steps = whole.provenance.settings["losses"], len(whole.provenance.settings["losses"][0])
    assert 25 < steps < 400 and steps % 25 == 0 and 0.0 not in losses
    before, there = (sigmoid(learnt(**{**vars(settings), "rest": 0.0, "steps": n})) for n in (steps - 25, steps))
    assert np.abs(there - before).max() < 0.004 and np.array_equal(there, sigmoid(whole.values))
    keeping = replace(SINGLE, checkpoint=kept_in(tmp_path))
    with pytest.raises(Interrupted):
        score_learned_mask(stopping(keeping, steps - 10), LAYERS, settings)
    resumed = score_learned_mask(keeping, LAYERS, settings)
    assert np.array_equal(resumed.values, whole.values) and resumed.provenance.settings["losses"] == [losses]


@pytest.mark.parametrize(("optimiser", "rate"), [("sgd", 3.0), ("adam", 0.01)])
def test_each_optimiser_has_a_rate_of_its_own_and_the_provenance_names_it(optimiser: str, rate: float) -> None:
    found = score_learned_mask(SINGLE, LAYERS, LearnedMask(optimiser=optimiser, steps=2))
    assert np.array_equal(found.values, learnt(optimiser=optimiser, steps=2, learning_rate=rate))
    assert found.provenance.settings["learning_rate"] == rate


def test_where_the_gates_ended_is_noted() -> None:
    scores = score_learned_mask(SINGLE, LAYERS, LearnedMask(steps=3, seeds=2, learning_rate=0.5))
    ends = [[round(float(np.quantile(sigmoid(one), q)), 4) for q in (0, 0.5, 1)] for one in scores.repeats]
    np.testing.assert_allclose(scores.provenance.settings["gates"], ends, atol=2e-4)


def test_gates_are_learnt_on_training_records_where_asked() -> None:
    evidence = quadratic_evidence()
    with pytest.raises(BadInput, match="records='training', but no such records are at hand"):
        learnt(evidence, steps=2, records="training")
    other = replace(SINGLE, data=evidence.data[:1], training=SINGLE.data)
    assert np.array_equal(learnt(other, steps=2, records="training"), learnt(steps=2))
    assert not np.array_equal(learnt(other, steps=2), learnt(steps=2))


def test_scores_learnt_on_training_records_name_those() -> None:
    data = ({"split": "train", "records": 9}, {"split": "calibration", "records": 2, "batches": 1})
    evidence = replace(SINGLE, training=[*SINGLE.data] * 3, provenance=Provenance(data=data))
    of = {
        records: score_learned_mask(evidence, LAYERS, LearnedMask(steps=1, records=records)).provenance.data
        for records in ("calibration", "training")
    }
    assert of == {"calibration": data, "training": ({"split": "train", "records": 9, "batches": 3},)}


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"optimiser": "adem"}, UnknownName, r"unknown learned_mask optimiser 'adem'; did you mean 'adam'\?"),
        ({"budget": "topk"}, UnknownName, r"did you mean 'top_k'\?"),
        ({"records": "train"}, UnknownName, r"unknown learned_mask records 'train'; did you mean 'training' or"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        learnt(**settings)
