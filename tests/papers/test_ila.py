"""The ILA study in miniature: what its cells compute, equal budgets, resume, tables that follow from the figures."""

import dataclasses

import numpy as np
import pytest

from keylayers.errors import UnknownName
from keylayers.inputs.text import prepare_data
from keylayers.layers.adapter_undo import restored
from keylayers.layers.gating import gated
from keylayers.measures import PairedDifference, paired_difference
from keylayers.measures.loss import example_losses
from keylayers.models import deltas_of
from keylayers.papers.ila import pooled, tables, tasks
from keylayers.papers.ila import study as study_module
from keylayers.papers.ila.plan import Scale, scale_of
from keylayers.papers.ila.study import Study, reproduce
from keylayers.runs import open_run
from keylayers.studies import rankings, text_cells, text_task
from keylayers.studies.arms import Budget
from keylayers.studies.pages import Claim, ledger, page
from keylayers.studies.retraining import RANDOM, LearningRateGrid
from keylayers.studies.text_task import Task
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.trainer import TrainSettings, train

WAYS = (
    "ILA (s0 = 4)",
    "midpoint",
    "midpoint, 25 % of stage 1",
    "first step",
    "midpoint per parameter",
    "midpoint, kinds first",
)
FEW = rankings.mask("adam", 0.01, 5, 4.0)
"""A mask learnt in 5 steps instead of 100: what more of them would find is no matter here."""
PARTS = ("stability", "sweep", "frugal", "reasoning", "transfer")
QUICK = TrainSettings(steps=4, batch_size=4, learning_rate=1e-2, save_every=10**9)


def _whole(scale, run) -> Study:
    """What is known after the last part; after every part before it, one task more was known."""
    *before, last = reproduce(scale, run, processes=1)
    assert [len(one.tasks) for one in before] == list(range(1, len(last.tasks)))
    return last


@pytest.fixture(scope="module")
def task(world) -> Task:
    return Task("small", world.inputs(), QUICK, LoraSettings(rank=2, alpha=4.0), control=str(world.data))


@pytest.fixture(scope="module")
def study(task, tmp_path_factory):
    """A whole study, its scale and its folder."""
    folder = tmp_path_factory.mktemp("study")
    other = dataclasses.replace(task, name="other", inputs=dataclasses.replace(task.inputs, split_seed=1))
    scale = Scale(
        (task, other),
        seeds=2,
        budget=Budget(0.4),
        all_rates=LearningRateGrid((1e-2, 3e-2)),
        rates=LearningRateGrid((2e-2,)),  # all layers choose one of two
        ways=WAYS,
        matched=("midpoint",),
    )
    scale = dataclasses.replace(scale, **dict.fromkeys(PARTS))
    with pytest.MonkeyPatch.context() as patched, open_run(folder, "study", {}) as run:
        patched.setitem(tasks.WAYS, WAYS[0], FEW)
        patched.setattr(study_module, "DRAWS", 2)
        return scale, _whole(scale, run).tasks, folder


def test_every_arm_spends_the_same_and_is_trained_with_every_seed(study):
    scale, results, _ = study
    for result in results:
        total = sum(layer.lora_size for layer in result.arms["all"].choice(0).layers)
        largest = max(layer.lora_size for layer in result.arms["all"].choice(0).layers)
        for name, arm in result.arms.items():
            assert len(result.retrained[name]) == len(result.kept[name]) == 2
            for seed, trained in enumerate(result.retrained[name]):
                spent = scale.budget.size(arm.choice(seed))
                assert trained["trainable"] == 2 * spent  # rank 2
                assert name == "all" or 0.4 * total - largest <= spent <= 0.41 * total or "kinds" in name, name
        kinds = result.arms["random, kinds of midpoint"]
        assert all(kinds.choice(s).kinds() == result.arms["midpoint"].choice(s).kinds() for s in range(2))
        drawn = [names for s in range(2) for arm in (kinds, result.arms[RANDOM]) for names in arm.names(s)]
        assert len(drawn) == 6 and len(set(drawn)) >= 4  # of a tiny network, draws may meet


def test_retraining_is_lora_on_those_layers_alone(study, world):
    scale, results, _ = study
    task, arm = scale.tasks[0], results[0].arms["midpoint"]
    rate = results[0].rates["midpoint"]
    loaded = task.inputs.load_model()
    data = prepare_data(task.inputs, loaded)
    with restored(loaded.model):
        adapted = attach_lora(loaded.model, arm.choice(1).chosen, task.lora, seed=1)
        train(adapted, data.train, dataclasses.replace(task.training, seed=1, learning_rate=rate))
        assert results[0].retrained["midpoint"][1]["test"] == example_losses(adapted, data.test).mean


def test_keeping_every_change_gives_the_tuned_model_and_the_rate_is_chosen_on_calibration_records(study):
    scale, results, folder = study
    task, result = scale.tasks[0], results[0]
    loaded = task.inputs.load_model()
    place = text_task.load_task(task.fields())
    adapter = next((folder / "stage1").glob("small-*-seed0-*-1/adapter"))
    tuned = deltas_of(loaded.model, adapter, place.layers)
    with gated(place.loaded.model, tuned, tuned.uniform(1.0)) as model:
        assert result.kept["all"][0] == pytest.approx(example_losses(model, place.data.test).mean, abs=1e-6)
    assert result.rates["all"] in (1e-2, 3e-2) and {*result.rates.values()} <= {result.rates["all"], 2e-2}
    assert result.before["test"] > result.retrained["all"][0]["test"]


def test_what_is_done_is_read_back_and_the_model_is_left_as_it_was(study, monkeypatch):
    scale, results, folder = study
    monkeypatch.setitem(tasks.WAYS, WAYS[0], FEW)
    monkeypatch.setattr(study_module, "DRAWS", 2)
    monkeypatch.setattr(text_cells, "DO", {})  # whatever is computed again fails
    with open_run(folder, "study", {}) as run:
        again = _whole(scale, run).tasks
    assert tables.to_json(Study(again)) == tables.to_json(Study(results))
    place = text_task.load_task(scale.tasks[0].fields())
    fresh = scale.tasks[0].inputs.load_model().model.state_dict()
    assert all((value == fresh[name]).all() for name, value in place.loaded.model.state_dict().items())


def test_a_partial_stage_one_is_the_start_of_the_whole(task, tmp_path):
    place = text_task.load_task(dataclasses.replace(task, training=dataclasses.replace(QUICK, steps=6)).fields())
    whole, part = (text_cells.stage_one(place, tmp_path, seed=3, lr=1e-2, share=share) for share in (1.0, 0.5))
    assert part["losses"] == whole["losses"][:3] and whole["adapter"] != part["adapter"]
    short = text_cells.stage_one(place, tmp_path, seed=3, lr=1e-2, share=0.5, short=True)
    assert len(short["losses"]) == 3 and short["adapter"] not in (whole["adapter"], part["adapter"])
    assert short["losses"][0] == part["losses"][0] and short["losses"] != part["losses"]  # another schedule


def test_a_mask_can_be_learnt_on_the_records_that_were_trained_on(study, tmp_path):
    scale, _, folder = study
    place, (adapter, *_) = (
        text_task.load_task(scale.tasks[0].fields()),
        sorted((folder / "stage1").glob("small-*/adapter")),
    )
    on = {}
    for records in ("calibration", "training"):
        found = text_cells.score(
            place,
            tmp_path,
            criterion="learned_mask",
            settings={"steps": 1, "records": records},
            adapter=str(adapter),
        )
        on[records] = text_cells.scores_in(tmp_path, found).values
    assert not np.array_equal(on["calibration"], on["training"])


def test_tables_say_what_the_figures_say(study):
    _, results, _ = study
    found = tables.make_tables(Study(results))
    text = page("Title", tables.introduction(results, "smoke"), found)
    for result in results:
        np.testing.assert_allclose(pooled.gains(result, "all"), 1.0)
        losses = [one["test"] for one in result.retrained["midpoint"]]
        assert f"{np.mean(losses):.3f} ±" in text
        rivals = [one["test"] for one in result.retrained["random, kinds of midpoint"]]
        assert f"{np.mean(losses) - np.mean(rivals):+.3f} ±" in text
    together = found[0]
    assert together.title == "All 2 tasks together" and "all" not in [row[0] for row in together.rows]
    on_calibration = [float(row[1]) for row in together.rows]
    assert on_calibration == sorted(on_calibration, reverse=True)
    every = np.concatenate([pooled.gains(one, "midpoint") for one in results])
    assert f"{every.mean():.3f} ±" in next(row[2] for row in together.rows if row[0] == "midpoint")
    told = {one.text: one.effect for one in pooled.pooled_claims(results)}
    rival = np.mean([pooled.gains(one, RANDOM) for one in results], axis=0)
    better = every.reshape(len(results), -1).mean(0) - rival
    effect = told[f"over 2 tasks: midpoint beats {RANDOM}"]
    assert effect.interval.estimate == pytest.approx(better.mean()) and effect.pairs == 2
    assert text.startswith("# Title\n") and "small, other" in text
    assert all(len(row) == len(table.columns) for table in found for row in table.rows)


@pytest.mark.parametrize(
    ("losses", "rivals", "p", "verdict"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.95], None, "supported"),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.95], None, "contradicted"),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], None, "undecided here"),
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.95], 0.2, "undecided here"),  # once adjusted
    ],
)
def test_a_verdict_follows_from_the_adjusted_p_value(losses, rivals, p, verdict):
    effect: PairedDifference = paired_difference(rivals, losses)
    claim = Claim("it helps", "us", effect, "nats", effect.p_value if p is None else p)
    assert claim.verdict == verdict and f"**{verdict}**" in ledger([claim]).markdown()


def test_an_unknown_scale_is_named():
    with pytest.raises(UnknownName, match="unknown scale 'smal'; did you mean 'small'"):
        scale_of("smal")


def test_without_the_real_model_the_small_scale_has_the_bundled_tasks(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    assert [one.name for one in scale_of("small").tasks] == ["pirate", "formal"]
    monkeypatch.setenv("KEYLAYERS_MODELS", "/models")
    monkeypatch.setenv("KEYLAYERS_DATA", "/data")
    names = [one.name for one in scale_of("small").tasks]
    assert names == ["pirate", "stories260K-alpaca", "formal"]
