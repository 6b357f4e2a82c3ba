"""leave_one_out and add_one_in: both flip one gate at a time, and both must equal doing it by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from keylayers.criteria.add_one_in import score_add_one_in
from keylayers.criteria.leave_one_out import score_leave_one_out
from keylayers.errors import BadInput, Diverged
from keylayers.layers.layer import layer_named
from tests.criteria.examples import batches_of, evidence_of, mean_loss, quadratic_evidence

CASES = [(name, kind) for name in ("gpt2", "gpt-neox") for kind in ("lora", "dense")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_both_equal_brute_force(name: str, kind: str) -> None:
    """Every layer, every model by a copy whose weights were really changed, and a plain forward pass."""
    evidence = evidence_of(name, kind, double=True)
    layers = evidence.deltas.layers
    count = len(layers)
    base, tuned = (mean_loss(evidence, [gate] * count, gate) for gate in (0.0, 1.0))
    out, single = score_leave_one_out(evidence, layers), score_add_one_in(evidence, layers)
    for column in range(count):
        one = [float(index == column) for index in range(count)]
        without = mean_loss(evidence, [1 - gate for gate in one], 1.0)
        assert out.values[column] == pytest.approx(without - tuned, abs=1e-6)
        assert single.values[column] == pytest.approx(base - mean_loss(evidence, one, 0.0), abs=1e-6)
    assert out.provenance.settings["loss_tuned"] == pytest.approx(tuned, abs=1e-6)
    assert single.provenance.settings["loss_base"] == pytest.approx(base, abs=1e-6)
    assert np.abs(out.values).max() > 1e-3  # or the comparison would say nothing


def test_a_layer_that_did_not_change_scores_exactly_zero() -> None:
    evidence = evidence_of("llama")
    deltas = evidence.deltas
    column = deltas.layers.index(layer_named(deltas.layers, "model.layers.1.mlp.down_proj"))
    changes = tuple({} if index == column else one for index, one in enumerate(deltas.changes))
    evidence = replace(evidence, deltas=replace(deltas, changes=changes))
    for criterion in (score_leave_one_out, score_add_one_in):
        scores = criterion(evidence, deltas.layers)
        assert scores.values[column] == 0 and np.count_nonzero(scores.values) > 0


def test_lower_blocks_are_computed_once_per_batch() -> None:
    """A layer of the last block costs the last block alone: counted calls of the first block's attention."""
    evidence = evidence_of("llama")
    calls = {0: 0, 2: 0}
    for block in calls:
        module = evidence.model.model.layers[block].self_attn.q_proj

        def count(module, args, block=block) -> None:
            calls[block] += 1

        module.register_forward_pre_hook(count)
    score_leave_one_out(evidence, evidence.deltas.layers)
    batches, inside = len(evidence.data), 7  # seven linear layers in each of three blocks, and the output head
    assert calls == {0: batches * (1 + inside), 2: batches * (1 + 3 * inside)}


def test_repeats_weigh_batches_by_their_tokens() -> None:
    evidence = quadratic_evidence()
    layers = evidence.deltas.layers
    scores = score_leave_one_out(evidence, layers)
    alone = [score_leave_one_out(replace(evidence, data=[batch]), layers).values for batch in evidence.data]
    np.testing.assert_allclose(scores.repeats, alone, rtol=1e-12)
    np.testing.assert_allclose(scores.values, (4 * alone[0] + 7 * alone[1]) / 11, rtol=1e-12)


def test_a_batch_without_supervised_tokens_changes_nothing() -> None:
    evidence = evidence_of("llama")
    layers = evidence.deltas.layers
    empty = dict(batches_of("llama")[0])
    empty["labels"] = empty["labels"].clone().fill_(-100)
    more = replace(evidence, data=[*evidence.data, empty])
    np.testing.assert_array_equal(
        score_leave_one_out(more, layers).values, score_leave_one_out(evidence, layers).values
    )
    for criterion in (score_leave_one_out, score_add_one_in):
        with pytest.raises(BadInput, match="no supervised token"):
            criterion(replace(evidence, data=[empty]), layers)


def test_a_loss_that_is_not_finite_names_batch_and_layer() -> None:
    evidence = quadratic_evidence()
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        value, rows = evidence.loss(model, batch)
        return value * (math.nan if calls == 7 else 1.0), rows  # 4 per batch: whole, and one for each layer

    with pytest.raises(Diverged, match=r"batch 1 with only the gate of second at 0 is nan"):
        score_leave_one_out(replace(evidence, loss=loss), evidence.deltas.layers)
    calls = 6
    with pytest.raises(Diverged, match=r"batch 0 with all gates at 0 is nan"):
        score_add_one_in(replace(evidence, loss=loss), evidence.deltas.layers)
