"""Data-oblivious layers in miniature: equal sets, all of it resumed, claims that follow the figures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from keylayers.errors import BadInput, UnknownName
from keylayers.papers.data_oblivious import plan
from keylayers.papers.data_oblivious import study as oblivious
from keylayers.papers.data_oblivious.block_sets import (
    CRITICAL,
    LAST,
    LEAST,
    MIXED,
    OTHERS,
    list_block_sets,
    random_blocks,
    size_of,
)
from keylayers.papers.data_oblivious.block_training import NONE, Adapted
from keylayers.papers.data_oblivious.claims import list_claims, worth_training
from keylayers.papers.data_oblivious.plan import Adaptation, Base, Defence, Removal, Scale, scale_of
from keylayers.papers.data_oblivious.poison import Poison
from keylayers.papers.data_oblivious.results_json import to_json
from keylayers.papers.data_oblivious.tables import adaptation_table, introduction, make_tables
from keylayers.runs import open_run
from keylayers.studies.pages import page
from keylayers.studies.retraining import ALL, LearningRateGrid
from keylayers.studies.text_task import Task
from keylayers.training.adapters import LoraSettings
from keylayers.training.trainer import TrainSettings
from tests.small_world import make

BLOCKS = 5


@pytest.fixture(scope="module")
def scale(tmp_path_factory) -> Scale:
    world = make(tmp_path_factory.mktemp("five"), blocks=BLOCKS)
    settings = TrainSettings(steps=3, batch_size=4, learning_rate=1e-2, save_every=10**9)
    task = Task("colours", world.inputs(), settings, LoraSettings(rank=2, alpha=4.0))
    other = replace(task, name="others", inputs=replace(task.inputs, split_seed=1))
    base = Base("tiny", task, (task, other), (task,), taught="own", window=3)
    once = LearningRateGrid((1e-2,))
    return Scale(
        (base,),
        rates=once,
        adaptation=Adaptation(("tiny",), share=0.4, draws=2, seeds=2, rates=once),
        removal=Removal(task, "tiny", ("base",), components=(1,), records=2, new_tokens=3),
        defences=(Defence("tiny", task, {"vpi": Poison("vpi", 0.5, "No.")}, ("base",), (0.4,), 1, 2, once),),
    )


@pytest.fixture(scope="module")
def study(scale, tmp_path_factory):
    """All of it, and its folder."""
    folder = tmp_path_factory.mktemp("oblivious")
    with open_run(folder, "study", {}) as run:
        parts = list(oblivious.reproduce(scale, run, processes=1))
    counts = [(len(one.removed), len(one.adapted), len(one.defended)) for one in parts]
    assert counts == [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 2, 1)]  # a page after each
    return parts[-1], folder


def test_every_part_is_measured_on_sets_of_one_size(study):
    found, _ = study
    assert [one.start.name for one in found.profiled] == ["tiny, base", "tiny, tuned"]
    base, tuned = found.profiled
    assert tuned.start.taught[1] < tuned.start.taught[0] and base.start.taught is None
    assert all(sorted(one.order) == list(range(BLOCKS)) for one in found.profiled)
    assert set(base.needed) == {"3 blocks", "1 block"} and len(base.needed["1 block"]["colours"]) == 2
    assert [one.start.kind for one in found.adapted] == ["base", "tuned"]
    for one in found.adapted:
        assert {len(chosen) for sets in one.blocks.values() for chosen in sets} == {2}
        assert len({one.trained[arm][0]["trainable"] for arm in (CRITICAL, OTHERS, LEAST, LAST)}) == 1
        assert one.trained[ALL][0]["trainable"] > 2 * one.trained[CRITICAL][0]["trainable"]
        assert one.blocks[CRITICAL][0] == tuple(sorted(found.profiled[one.start.kind == "tuned"].order[:2]))
        assert one.blocks[CRITICAL][0] not in one.blocks[OTHERS] and len(set(one.blocks[OTHERS])) == 2
    (guarded,) = found.defended
    assert guarded.frozen == 2 and set(guarded.rates) == {CRITICAL, OTHERS, LEAST, NONE}
    assert (
        len(guarded.values(NONE, "attack", "vpi")) == 2
        and {"recovered", "attack"} <= guarded.tuned["vpi"][NONE][0].keys()
    )
    (stripped,) = found.removed
    assert set(way for _, _, way in stripped.found) == {"stored", "projected", "random"}


@pytest.mark.parametrize("moved", [False, True])
def test_a_finished_study_is_read_back_wherever_its_folder_is(study, scale, monkeypatch, tmp_path, moved):
    found, folder = study
    if moved:
        folder = shutil.copytree(folder, tmp_path / "moved")

    def refused(*args, **kwargs):
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr(oblivious, "compute", refused)
    with open_run(folder, "study", {}) as run:
        *_, again = oblivious.reproduce(scale, run, processes=1)
    assert json.dumps(to_json(again), sort_keys=True) == json.dumps(to_json(found), sort_keys=True)


def test_the_page_holds_every_part_and_its_figures_are_those_measured(study):
    found, _ = study
    text = page("Data-oblivious", introduction(found, "smoke"), make_tables(found))
    for one in (*found.adapted, *found.defended, *found.removed):
        assert f"{one.start.name}: {one.task.name}" in text
    for one in found.adapted:
        for arm in one.trained:
            assert f"{np.mean(one.losses(arm)):.3f}" in text
    told = [one.text for one in list_claims(found)]
    assert len(told) == len(set(told)) and all(one in text for one in told)
    assert json.loads(json.dumps(to_json(found)))["profiles"][0]["order"] == list(found.profiled[0].order)


@pytest.mark.parametrize(("others", "verdict"), [(3.0, "supported"), (1.0, "contradicted"), (2.0, "undecided here")])
def test_claims_follow_the_losses(study, others, verdict):
    one = study[0].adapted[0]
    noise = np.array([0.0, 0.01, -0.01, 0.02, -0.02])

    def told(mean: float, shift: int) -> tuple[dict[str, float], ...]:
        return tuple(
            {"test": float(value), "calibration": mean, "trainable": 9} for value in mean + np.roll(noise, shift)
        )

    blocks = {arm: ((index, index + 1),) for index, arm in enumerate((CRITICAL, OTHERS, LEAST, LAST))}
    trained = {CRITICAL: told(2.0, 0), OTHERS: told(others, 1), LEAST: told(3.0, 2), LAST: told(3.0, 2)}

    def measured(everything: float, before: float = 5.0) -> Adapted:
        losses = {"test": before, "calibration": before}
        return Adapted(one.start, one.task, losses, blocks, {**trained, ALL: told(everything, 0)}, rates)

    rates = dict.fromkeys((*trained, ALL), 0.01)

    (first, *_rest) = worth_training([measured(1.0)])
    assert first.text.endswith(f"beat {OTHERS}") and first.verdict == verdict
    assert first.effect.interval.estimate == pytest.approx(others - 2.0)
    pooled, *_rest = worth_training([measured(1.0), measured(0.0), measured(6.0)])  # the third learns nothing
    assert pooled.text == f"2 domains and starts: critical blocks beat {OTHERS}"
    shares = [(others - 2.0) / 4, (others - 2.0) / 5]  # of the gain
    assert pooled.effect.interval.estimate == pytest.approx(np.mean(shares), abs=1e-3)
    assert worth_training([measured(6.0)]) == []
    assert "Not judged" in adaptation_table(measured(6.0)).notes[1]
    assert {row[5] for row in adaptation_table(measured(6.0)).rows} == {""}


def test_random_sets_are_other_sets_of_the_size():
    assert size_of(0.25, 12) == 3 and size_of(0.01, 12) == 1 and size_of(0.99, 5) == 4
    sets = list_block_sets((4, 0, 3, 1, 2), 2, draws=3)
    assert sets[CRITICAL](0) == [(0, 4)] and sets[LEAST](7) == [(1, 2)] and sets[LAST](0) == [(3, 4)]
    for seed in range(5):
        assert sorted(sets[OTHERS](seed)) == [(1, 2), (1, 3), (2, 3)]
    most = list_block_sets(tuple(range(12)), 5, draws=4)
    assert most[OTHERS](0) == most[OTHERS](0) != most[OTHERS](1)
    assert all(min(one) >= 5 for seed in range(5) for one in most[OTHERS](seed))
    half = list_block_sets((4, 0, 3, 1), 2, draws=9)
    assert OTHERS not in half and set(half[MIXED](0)) == {(0, 1), (0, 3), (1, 3), (1, 4), (3, 4)}
    large = random_blocks(range(10, 42), 8, 4, 0, avoid=tuple(range(8)))
    assert len(set(large)) == 4 and all(len(set(one)) == 8 and min(one) >= 10 for one in large)
    assert len(set(large)) == 4 and all(len(set(one)) == 8 for one in large)
    with pytest.raises(BadInput, match="leaves nothing to compare"):
        size_of(1.0, 5)
    with pytest.raises(BadInput, match="there is one set of 3 of 3 blocks"):
        random_blocks(range(3), 3, 1, 0, avoid=(0, 1, 2))


@pytest.mark.parametrize("name", ["smoke", "small", "full"])
def test_blocks_are_chosen_without_a_record_that_is_tuned_on(name, monkeypatch):
    monkeypatch.setenv("KEYLAYERS_MODELS", "models")
    monkeypatch.setenv("KEYLAYERS_DATA", "data")
    asked = scale_of(name)
    for base in asked.bases:
        tuned_on = {one.inputs.data for one in base.domains}
        tuned_on |= {one.task.inputs.data for one in asked.defences if one.base == base.name}
        assert tuned_on and len(base.corpora) >= 3
        assert not tuned_on & {one.inputs.data for one in base.corpora}
        for one in base.corpora:
            if one.inputs.data.startswith("bundled:"):
                assert len(one.inputs.load_splits().calibration) >= 64


def test_the_scales_are_there_and_unknown_names_are_told(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    assert [one.name for one in scale_of("small").bases] == ["llama", "llama-again", "llama-shallow", "llama-narrow"]
    monkeypatch.setenv("KEYLAYERS_MODELS", "models")
    monkeypatch.setenv("KEYLAYERS_DATA", "data")
    assert scale_of("full").defences[1].base == plan.real()[0][0].name == "stories260K"
    with pytest.raises(UnknownName, match="unknown scale 'smal'; did you mean 'small'"):
        scale_of("smal")
    with pytest.raises(UnknownName, match="base of the study"):
        scale_of("smoke").base("lama")
