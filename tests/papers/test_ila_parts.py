"""The ILA study's other questions, asked of a planted world in which every layer's worth is known."""

import numpy as np
import pytest

from keylayers.papers.ila import overlaps as overlap_tables
from keylayers.papers.ila.early_choice import EARLY, SHORT, WHOLE, EarlyChoicePlan, frugal_table, measure_early_choice
from keylayers.papers.ila.reasoning import ReasoningPlan, measure_reasoning, reasoning_table
from keylayers.papers.ila.share_sweep import ShareSweepPlan, measure_share_sweeps, sweep_claims, sweep_table
from keylayers.papers.ila.stability import StabilityPlan, measure_overlaps
from keylayers.papers.ila.transfer import OWN, TransferPlan, measure_transfer, transfer_claims, transfer_table
from keylayers.runs import open_run
from keylayers.studies.retraining import ALL, RANDOM, LearningRateGrid
from tests.papers.planted import PlantedDesk

RATES = LearningRateGrid((1e-2, 3e-2))


@pytest.fixture
def desk(tmp_path):
    with open_run(tmp_path / "run", "study", {}) as run:
        yield PlantedDesk(run)


def test_more_of_the_best_layers_recover_more_and_beat_random_at_every_share(desk):
    exact, rounded = measure_share_sweeps(
        desk, ShareSweepPlan(shares=(0.1, 0.3, 0.75), quantised=(0.3,), seeds=5, rates=RATES)
    )
    gains = [exact.gains("midpoint", share).mean() for share in (0.1, 0.3, 0.75)]
    assert gains == sorted(gains) and gains[-1] < 1 == exact.gains(ALL, 1.0).mean()
    for share in (0.1, 0.3, 0.75):
        assert exact.gains("midpoint", share).min() > exact.gains(RANDOM, share).max()
    assert set(exact.rates.values()) == {1e-2}
    assert rounded.nf4 and rounded.losses["midpoint", 0.3][0] == pytest.approx(exact.losses["midpoint", 0.3][0] + 0.1)
    assert "4-bit" in sweep_table(rounded).title
    verdicts = {one.text: one.verdict for one in sweep_claims(exact)}
    assert verdicts["pirate: 30% by midpoint beats random, same size"] == "supported"
    assert (
        verdicts["pirate: freezing the worst 25 % by midpoint helps"] == "contradicted"
    )  # every layer is worth something


def test_an_early_choice_costs_its_share_and_is_judged_beside_the_whole(desk, monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)  # without real tasks
    (one,) = measure_early_choice(desk, EarlyChoicePlan(tasks=("pirate",), seeds=3))
    assert one.seconds[EARLY] == (20 * 0.1 + 1,) * 3 and one.seconds[WHOLE] == (21,) * 3
    looked = {each["records"] for task, what, each in desk.asked if what == "score" and each["adapter"].endswith("0.1")}
    assert looked == {32} and all(task.training.steps == 240 for task, _, _ in desk.asked)
    assert max(one.losses[EARLY]) < min(one.losses[RANDOM])
    assert {each.get("short") for task, what, each in desk.asked if what == "stage_one"} == {None, True}
    assert one.seconds[SHORT] == one.seconds[EARLY] and max(one.losses[SHORT]) < min(one.losses[RANDOM])
    row = frugal_table([one]).rows[1]
    assert row[1] == EARLY and row[2] == "0.150" and float(row[3]) > 0.9


def test_reasoning_counts_right_answers(desk):
    found = measure_reasoning(desk, ReasoningPlan(seeds=3, rates=RATES))
    assert all(each.get("answers") for _, what, each in desk.asked if what == "retrain")
    assert np.mean(found.exact["midpoint"]) > np.mean(found.exact[RANDOM])
    assert reasoning_table(found).rows[0][0] == ALL


def test_a_carried_ranking_is_judged_beside_its_depth_and_kinds_alone(desk):
    found = measure_transfer(desk, TransferPlan(sources=("bundled:llama-shallow",), seeds=3, rates=RATES))
    source = "bundled:llama-shallow"
    assert set(found.losses) == {OWN, RANDOM, source, f"{source}, depth only", f"{source}, kind only"}
    assert max(found.losses[source]) < min(found.losses[RANDOM])
    assert np.mean(found.losses[OWN]) <= np.mean(found.losses[source]) < np.mean(found.losses[f"{source}, kind only"])
    assert len(transfer_claims(found)) == 4 and len(transfer_table(found).rows) == 5


def test_overlaps_pair_independent_procedures_and_say_which_agree(desk, monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    asked = StabilityPlan(seeds=2, milestones=(0.5,), records=(64,), models=("bundled:llama", "bundled:llama-shallow"))
    found = measure_overlaps(desk, asked)
    for one in found:
        assert one.pairs
        assert all(i == j if "same run" in one.of else i != j for i, j, _, _ in one.pairs)
    questions = list(dict.fromkeys(one.question for one in found))
    assert questions == [
        "between data sets", "between seeds", "between seeds of the mask alone", "between initial scores",
        "moments of training", "amount of data", "diversity of data", "between models",
    ]  # fmt: skip
    table = overlap_tables.overlap_table(found)
    of = {(row[0], row[2]): row for row in table.rows}
    assert float(of["between seeds", "midpoint"][8]) < 1e-6  # beyond chance
    assert float(of["between seeds", "norm"][8]) > 0.05  # planted at random
    assert float(of["between models", "midpoint"][7]) > 0.9
