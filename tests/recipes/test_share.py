"""Choosing the share: planted layers are found, kept is really kept, resumed is the same, refusals come first."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from keylayers.errors import BadInput, BadScores
from keylayers.inputs.text import Inputs, prepare_data
from keylayers.layers import gated, named_layers
from keylayers.layers.deltas import deltas_from_checkpoints
from keylayers.measures.loss import example_losses
from keylayers.recipes import share as module
from keylayers.recipes.score import score_layers
from keylayers.recipes.share import ShareRequest, choose_share, settings_of
from keylayers.runs import open_run
from keylayers.scores import LayerScores
from keylayers.training.trainer import TrainSettings
from tests.small_world import request
from tests.tiny_models import CAUSAL, build, inputs

PLANTED = ("lm_head", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.v_proj")


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """A tuning run long enough to gain, its scores, and a checkpoint with the changes of the planted layers alone."""
    folder = tmp_path_factory.mktemp("tuned")
    steps = TrainSettings(steps=40, batch_size=8, learning_rate=1e-2, save_every=10**9)
    asked = request(world, "path_integral", stage_one=steps, settings={"points": 1})
    with open_run(folder / "run", "score", asked) as run:
        scores = score_layers(asked, run)["path_integral"]
    base = world.inputs().load_model().model
    whole = merged(world, folder / "run")
    for layer in named_layers(base):
        if layer.name in PLANTED:
            base.get_submodule(layer.name).weight.data.copy_(whole.get_submodule(layer.name).weight.data)
    base.save_pretrained(folder / "planted")
    world.inputs().load_model().tokenizer.save_pretrained(folder / "planted")
    return folder, scores


def merged(world, run):
    from peft import PeftModel

    model = world.inputs().load_model().model
    return PeftModel.from_pretrained(model, str(run / "stage1" / "adapter")).merge_and_unload()


def ranked(scores: LayerScores, names) -> LayerScores:
    """Scores that put these layers first."""
    values = np.array([float(layer.name in names) for layer in scores.layers])
    return LayerScores(scores.layers, values, "planted", "linear", scores.provenance)


def chosen(asked: ShareRequest, scores: LayerScores, folder):
    with open_run(folder, "share", settings_of(asked, scores)) as run:
        return choose_share(asked, run, scores)


def asked(world, tuned, **changes) -> ShareRequest:
    return ShareRequest(**{"tuned": str(tuned), "inputs": world.inputs(held_out=12), "points": 5, **changes})


def test_planted_layers_are_enough_and_random_ones_are_not(world, tuned, tmp_path):
    folder, scores = tuned
    result = chosen(asked(world, folder / "planted"), ranked(scores, PLANTED), tmp_path / "run")
    assert result.k is not None and result.k <= 3 and result.policy == f"top:{result.k}"
    assert result.unchanged == 22 - 3 and result.elsewhere == 0
    for point in result.calibration.points:
        if point.k >= 3:
            assert (point.share, point.low, point.high) == pytest.approx((1, 1, 1), abs=1e-4)
        if point.k < 22:
            assert len(point.random) == 5
    assert result.test is not None and [point.k for point in result.test.points] == [result.k]
    assert result.test.at(result.k).share > 0.9


def test_a_reversed_ranking_needs_all_of_the_planted_layers(world, tuned, tmp_path):
    folder, scores = tuned
    last = [layer.name for layer in scores.layers if layer.name not in PLANTED]
    result = chosen(asked(world, folder / "planted", halvings=9), ranked(scores, last), tmp_path / "run")
    assert result.k is not None and result.k > 22 - 3
    assert all(point.share == pytest.approx(0, abs=1e-4) for point in result.calibration.points if point.k <= 19)


def test_what_is_kept_is_what_the_merged_weights_of_those_layers_give(world, tuned, tmp_path):
    folder, scores = tuned
    given = asked(world, folder / "run", halvings=0)
    result = chosen(given, scores, tmp_path / "run")
    loaded = given.inputs.load_model()
    data, whole, base = prepare_data(given.inputs, loaded), merged(world, folder / "run"), loaded.model
    before = example_losses(base, data.calibration).mean
    gain = before - example_losses(whole, data.calibration).mean
    for point in result.calibration.points:
        for layer in scores.ranking()[: point.k]:
            base.get_submodule(layer.name).weight.data.copy_(whole.get_submodule(layer.name).weight.data)
        assert point.share == pytest.approx((before - example_losses(base, data.calibration).mean) / gain, abs=2e-3)
    assert result.calibration.base_loss == pytest.approx(before)
    assert result.test is not None
    again = given.inputs.load_model().model
    assert result.test.base_loss == pytest.approx(example_losses(again, data.test).mean)
    assert result.test.tuned_loss == pytest.approx(example_losses(whole, data.test).mean, abs=1e-4)
    assert result.test.base_loss != pytest.approx(before)
    assert [entry["split"] for entry in result.data] == ["calibration", "test"]
    assert result.data[0]["sha256"] != result.data[1]["sha256"]


@pytest.mark.parametrize("name", CAUSAL)
def test_in_every_architecture_nothing_kept_is_the_base_and_one_layer_kept_that_layer_tuned(name, tmp_path):
    base, tuned, batch = build(name), build(name), [inputs(name)]
    layers = named_layers(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    deltas, before = deltas_from_checkpoints(base, tuned, layers), copy.deepcopy(base.state_dict())
    scores = LayerScores(layers, np.arange(float(len(layers))), "planted", "linear")
    gates, rest = deltas.uniform(0.0), torch.zeros(())
    with open_run(tmp_path, "share", {}) as run, gated(base, deltas, lambda: gates, rest) as model:
        work = module._Work(ShareRequest("x", Inputs("x")), run, scores, model, gates, rest)
        records = module._Records("calibration", batch)  # type: ignore[arg-type]
        found = [one.mean for one in (*work.ends(records), work.losses(records, "top-1", work.sets(1)["top-1"]))]
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    expected = [example_losses(one, batch).mean for one in (base, tuned)]
    (chosen,) = scores.ranking()[:1]
    with torch.no_grad():
        for part in chosen.parameters:
            whole, _, piece = part.partition("[")
            place = int(piece[:-1]) if piece else slice(None)
            base.get_parameter(whole)[place] = tuned.get_parameter(whole)[place]
    assert found == pytest.approx([*expected, example_losses(base, batch).mean], abs=1e-4)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


def test_random_sets_hold_as_many_of_each_kind_and_grow_along_one_order(world, tuned, tmp_path):
    _, scores = tuned
    work = module._Work(asked(world, "x"), None, scores, None, None, None)  # type: ignore[arg-type]
    kinds = np.array([layer.kind for layer in scores.layers])
    smaller, larger = work.sets(6), work.sets(11)
    for label, mask in larger.items():
        assert sorted(kinds[mask]) == sorted(kinds[larger["top-11"]])
        assert not (smaller[label.replace("-11", "-6")] & ~mask).any()
    assert len(larger) == 6 and len({mask.tobytes() for mask in larger.values()}) == 6
    assert list(work.sets(22)) == ["top-22"]


def test_a_stopped_run_resumes_to_the_same_curve_and_a_finished_one_measures_nothing(
    world, tuned, tmp_path, monkeypatch
):
    folder, scores = tuned
    given = asked(world, folder / "run")
    whole = chosen(given, scores, tmp_path / "whole")
    calls = []

    def stops(*words, **options):
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return example_losses(*words, **options)

    monkeypatch.setattr(module, "example_losses", stops)
    with pytest.raises(KeyboardInterrupt):
        chosen(given, scores, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped" / "parts").iterdir())) == 9
    monkeypatch.setattr(module, "example_losses", example_losses)
    assert chosen(given, scores, tmp_path / "stopped") == whole
    monkeypatch.setattr(module, "example_losses", lambda *a, **o: pytest.fail("measured again"))
    assert chosen(given, scores, tmp_path / "whole") == whole


def test_changes_outside_the_layers_count_in_the_gain_and_stay_with_no_set(world, tuned, tmp_path):
    folder, scores = tuned
    model = world.inputs(model=str(folder / "planted")).load_model().model
    rng = torch.Generator().manual_seed(0)
    model.model.embed_tokens.weight.data.add_(1e-3 * torch.randn(model.model.embed_tokens.weight.shape, generator=rng))
    model.model.norm.weight.data.mul_(1.7)  # sharper answers: a real part of the gain
    model.save_pretrained(tmp_path / "more")
    result = chosen(asked(world, tmp_path / "more", halvings=0), ranked(scores, PLANTED), tmp_path / "run")
    plain = chosen(asked(world, folder / "planted", halvings=0), ranked(scores, PLANTED), tmp_path / "plain")
    assert result.elsewhere == 2
    assert abs(result.calibration.points[-1].share - 1) > 0.01
    kept = [c.points[-1].share * (c.base_loss - c.tuned_loss) for c in (result.calibration, plain.calibration)]
    assert kept[0] == pytest.approx(kept[1], abs=1e-4)


def test_a_tuned_model_that_is_worse_than_the_base_has_no_gain_to_share(world, tuned, tmp_path):
    folder, scores = tuned
    given = asked(world, world.model, inputs=world.inputs(model=str(folder / "planted")))
    with pytest.raises(BadInput, match="no better than the base on the calibration records"):
        chosen(given, scores, tmp_path / "run")
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 2


def test_what_does_not_fit_is_refused_before_anything_is_measured(world, tuned, tmp_path, monkeypatch):
    folder, scores = tuned
    monkeypatch.setattr(module, "example_losses", lambda *a, **o: pytest.fail("measured"))
    layers = named_layers(build("gpt2"))
    foreign = LayerScores(layers, np.arange(float(len(layers))), "random", "linear")
    with pytest.raises(BadScores, match="scored layers are not in it"):
        chosen(asked(world, folder / "run"), foreign, tmp_path / "one")
    with pytest.raises(BadInput, match="equal tensors"):
        chosen(asked(world, world.model), scores, tmp_path / "two")
    with pytest.raises(BadInput, match=r"`within=1.*: expected a number above 0 and below 1"):
        asked(world, folder / "run", within=1.0)
    with pytest.raises(BadInput, match="`draws=4`: expected a whole number of at least 5"):
        asked(world, folder / "run", draws=4)


def test_what_was_tuned_or_scored_elsewhere_is_said(world, tuned, tmp_path, capsys):
    folder, scores = tuned
    assert folder.joinpath("run", "run.json").is_file()
    other = replace(scores.provenance, data=({"id": "other.jsonl", "sha256": "0" * 64},))
    moved = replace(scores, provenance=other)
    module._note_origins(asked(world, folder / "run", inputs=world.inputs(split_seed=3)), moved)
    said = capsys.readouterr().err
    assert f"the scores are of other.jsonl, the curve is of {world.data}" in said
    assert "the tuned model's run has split_seed 0, here it is 3" in said
    module._note_origins(asked(world, folder / "planted"), scores)
    assert capsys.readouterr().err.splitlines() == [
        "make sure that the tuned model was not trained on these calibration and test records"
    ]
