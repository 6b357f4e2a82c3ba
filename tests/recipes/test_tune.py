"""Arms tuned beside each other: kept, fairly chosen, refused before anything trains."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from keylayers.actions.finetuning import TuneSettings
from keylayers.errors import BadInput, BadScores, BadSelection, Diverged, UnknownName
from keylayers.inputs.scores_fit import check_scores_fit
from keylayers.inputs.text import Inputs
from keylayers.layers import named_layers
from keylayers.recipes import tune as module
from keylayers.recipes.tune import TuneRequest, compare_arms
from keylayers.runs import open_run
from keylayers.runs.seals import seal
from keylayers.scores import LayerScores, Provenance
from keylayers.scores.seeded_policies import choose
from keylayers.training.adapters import LoraSettings
from keylayers.training.trainer import TrainSettings
from tests.small_world import make
from tests.tiny_models import build

QUICK = TuneSettings(
    "lora", TrainSettings(steps=4, batch_size=4, learning_rate=1e-2, save_every=2), LoraSettings(rank=2)
)
FULL = dataclasses.replace(QUICK, method="full")


def scores_of(model, source="scored", seed=0) -> LayerScores:
    layers = named_layers(model)
    values = np.random.default_rng(seed).permutation(len(layers)).astype(float)
    origin = Provenance(model={"id": source, "architecture": type(model).__name__})
    return LayerScores(layers, values, "random", "linear", origin)


@pytest.fixture(scope="module")
def scores(world):
    return scores_of(world.inputs().load_model().model, str(world.model))


def compared(asked: TuneRequest, folder, scores=None):
    with open_run(folder, "tune", asked) as run:
        return compare_arms(asked, run, scores)


def part(folder, name: str) -> dict:
    return json.loads((folder / "parts" / f"{name}.json").read_text())["value"]


@pytest.fixture(scope="module")
def finished(world, scores, tmp_path_factory):
    """(request, folder, comparison) of three arms and two seeds."""
    asked = TuneRequest(world.inputs(), "top:30%", ("random:30%:match=params", "all"), settings=QUICK, seeds=2)
    folder = tmp_path_factory.mktemp("runs") / "arms"
    return asked, folder, compared(asked, folder, scores)


def test_each_arm_is_trained_with_each_seed_and_measured_on_test_records(finished, world, scores):
    _, folder, result = finished
    assert [arm.policy for arm in result.arms] == ["top:30%", "random:30%:match=params", "all"]
    assert result.arms[0].layers == 7 and result.arms[2].layers == 22
    assert all(len(set(arm.losses)) == 2 and arm.seconds > 0 for arm in result.arms)
    assert all(max(arm.losses) < result.base_loss for arm in result.arms)
    one = part(folder, "top_30pc-lr0.01-seed1")
    assert len(one["test_nats"]) == 8 and one["test_loss"] == result.arms[0].losses[1]
    assert set(one["layers"]) == {layer.name for layer in scores.ranking()[:7]}
    assert one["untouched"] == 2 + 2 * 3 + 1 + 7 * 3


def test_a_random_arm_draws_anew_for_every_seed_with_nearly_the_same_parameters(finished):
    _, folder, result = finished
    drawn = [part(folder, f"random_30pc_match=params-lr0.01-seed{seed}") for seed in range(2)]
    assert drawn[0]["layers"] != drawn[1]["layers"]
    top = result.arms[0].size_share
    assert all(one["size_share"] == pytest.approx(top, abs=0.06) for one in drawn)


def test_the_first_arms_model_is_stored_and_no_states_are_left(finished, world):
    from peft import PeftModel

    _, folder, _ = finished
    assert not list(folder.rglob("checkpoint-*")) and not list(folder.glob("arms/*/tuned"))
    model = PeftModel.from_pretrained(world.inputs().load_model().model, str(folder / "tuned"))
    assert (folder / "tuned" / "tokenizer.json").is_file()
    from keylayers.inputs.text import prepare_data
    from keylayers.measures.loss import example_losses

    data = prepare_data(world.inputs(), world.inputs().load_model())
    assert example_losses(model, data.test).mean == pytest.approx(part(folder, "top_30pc-lr0.01-seed0")["test_loss"])


def test_a_second_call_trains_nothing_and_shows_the_same(finished, scores, monkeypatch):
    asked, folder, result = finished
    monkeypatch.setattr(module, "tune", lambda *a, **o: pytest.fail("trained"))
    assert compared(asked, folder, scores) == result


def test_an_interrupted_comparison_resumes_in_the_arm_it_was_in_with_the_same_result(
    finished, scores, tmp_path, monkeypatch
):
    asked, _, result = finished
    real, calls = module.tune, []

    def stopping(model, selection, *rest, report, **options):
        calls.append(selection.policy)

        def watched(step, steps, loss):
            report(step, steps, loss)
            if len(calls) == 3 and step == 3:
                raise KeyboardInterrupt

        return real(model, selection, *rest, report=watched, **options)

    monkeypatch.setattr(module, "tune", stopping)
    with pytest.raises(KeyboardInterrupt):
        compared(asked, tmp_path / "run", scores)
    again = compared(asked, tmp_path / "run", scores)
    assert len(calls) == 3 + 4  # two were done, the third goes on, three follow
    assert [arm.losses for arm in again.arms] == [arm.losses for arm in result.arms]


def test_full_tuning_stores_a_whole_checkpoint(world, scores, tmp_path):
    from transformers import AutoModelForCausalLM

    asked = TuneRequest(world.inputs(), "top:30%", settings=FULL)
    result = compared(asked, tmp_path / "run", scores)
    assert result.arms[0].trainable == sum(layer.size for layer in scores.ranking()[:7])
    base = AutoModelForCausalLM.from_pretrained(world.model).state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "tuned").state_dict()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == {f"{layer.name}.weight" for layer in scores.ranking()[:7]}


RATES = (1e-3, 1e-2, 1e-1)


def pretended(calibration: dict[float, float], test: dict[float, float], trained: list):
    """In place of training: losses by learning rate."""

    def train(self, policy, seed, rate, report):
        trained.append((policy, seed, rate))
        (self._folder(module._name(policy, seed, rate)) / "tuned").mkdir(parents=True)
        (self._folder(module._name(policy, seed, rate)) / "tuned" / "rate").write_text(str(rate))
        return {
            "test_loss": test[rate] + seed / 100,
            "calibration_loss": calibration[rate],
            "layers": ["a"],
            "size_share": 0.1,
            "trainable": 5,
            "seconds": 1.0,
            "peak_bytes": 1,
        }

    return train


@pytest.mark.parametrize("best", RATES)
def test_the_learning_rate_is_chosen_on_calibration_data_whatever_the_test_says(
    world, scores, tmp_path, monkeypatch, best
):
    trained: list = []
    calibration = {rate: 1.0 if rate == best else 2.0 for rate in RATES}
    test = {rate: 9.0 if rate == best else 0.1 for rate in RATES}  # it would choose any other
    monkeypatch.setattr(module._Work, "_train", pretended(calibration, test, trained))
    asked = TuneRequest(world.inputs(), "top:30%", ("last:30%",), settings=QUICK, learning_rates=RATES, seeds=2)
    result = compared(asked, tmp_path / "run", scores)
    assert [arm.learning_rate for arm in result.arms] == [best, best]
    assert result.arms[0].losses == (9.0, 9.01)
    for policy in asked.policies:
        mine = [(seed, rate) for name, seed, rate in trained if name == policy]
        assert mine == [(seed, rate) for rate in RATES for seed in range(2)]
    assert (tmp_path / "run" / "tuned" / "rate").read_text() == str(best)


def test_a_rate_at_which_one_seed_blows_up_is_passed_over_and_so_is_one_that_diverges(
    world, scores, tmp_path, monkeypatch, capsys
):
    calibration = {(0.01, 0): 2.0, (0.01, 1): 2.0, (0.1, 0): 1.0, (0.1, 1): 99.0}

    def train(self, policy, seed, rate, report):
        if rate == 1.0:
            raise Diverged("the training loss is nan at step 3 of 4")
        made = pretended({rate: calibration[rate, seed]}, {rate: 1.0}, [])
        return made(self, policy, seed, rate, report)

    monkeypatch.setattr(module._Work, "_train", train)
    asked = TuneRequest(world.inputs(), "top:30%", settings=QUICK, learning_rates=(0.01, 0.1, 1.0), seeds=2)
    (arm,) = compared(asked, tmp_path / "run", scores).arms
    assert arm.learning_rate == 0.01 and arm.blew_up == ("", "")
    said = capsys.readouterr().err
    assert "3 learning rates with every seed: 6 trainings" in said
    assert "seed 1 at learning rate 0.1 blew up: calibration loss 99.000" in said and "the training loss is nan" in said
    with pytest.raises(Diverged, match="at every learning rate that was offered"):
        module._best("top:30%", {1.0: [{"diverged": "nan"}], 2.0: [{"diverged": "nan"}]}, 5.0)


def test_one_learning_rate_is_not_tried_twice(world, scores, tmp_path, monkeypatch):
    trained: list = []
    monkeypatch.setattr(module._Work, "_train", pretended({0.1: 1.0}, {0.1: 1.0}, trained))
    asked = TuneRequest(world.inputs(), "top:30%", ("top:30%",), settings=QUICK, learning_rates=(0.1, 0.1), seeds=1)
    result = compared(asked, tmp_path / "run", scores)
    assert trained == [("top:30%", 0, 0.1)] and len(result.arms) == 1


def test_a_model_that_was_trained_but_not_yet_published_is_published_by_the_next_call(
    world, scores, tmp_path, monkeypatch
):
    trained: list = []
    monkeypatch.setattr(module._Work, "_train", pretended({0.01: 1.0}, {0.01: 1.0}, trained))
    asked = TuneRequest(world.inputs(), "top:30%", settings=QUICK)
    publish = module._Work.publish
    monkeypatch.setattr(module._Work, "publish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compared(asked, tmp_path / "run", scores)
    monkeypatch.setattr(module._Work, "publish", publish)
    compared(asked, tmp_path / "run", scores)
    compared(asked, tmp_path / "run", scores)
    assert len(trained) == 1 and (tmp_path / "run" / "tuned" / "rate").is_file()


def test_a_model_that_was_damaged_before_it_was_published_is_refused(world, scores, tmp_path, monkeypatch):
    asked = TuneRequest(world.inputs(), "top:30%", settings=QUICK)
    monkeypatch.setattr(module._Work, "_train", pretended({0.01: 1.0}, {0.01: 1.0}, []))
    publish = module._Work.publish

    def damaged(work, rate):
        (kept,) = (tmp_path / "run" / "arms").glob("*/tuned")
        seal(kept)
        (kept / "rate").write_text("another")
        publish(work, rate)

    monkeypatch.setattr(module._Work, "publish", damaged)
    with pytest.raises(BadInput, match=r"rate' does not match its sha256.*`fresh`"):
        compared(asked, tmp_path / "run", scores)
    assert not (tmp_path / "run" / "tuned").exists()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"select": "topp:30%"}, UnknownName, "'topp'; did you mean 'top'"),
        ({"against": ("blocks:7",)}, BadSelection, "7"),
        ({"against": ("top:99",)}, BadSelection, "99 layers asked for, but there are only 22"),
        ({"inputs": {"data": "nowhere.jsonl"}}, BadInput, "no such data file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_trains(world, scores, tmp_path, monkeypatch, change, error, said):
    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded a model"))
    given = {**change, "inputs": world.inputs(**change.get("inputs", {}))}
    with pytest.raises(error, match=said):
        compared(TuneRequest(settings=QUICK, **given), tmp_path / "run", scores)
    assert not (tmp_path / "run" / "parts").exists()


def test_a_ranking_policy_without_scores_is_refused_and_others_are_not(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module._Work, "_train", pretended({0.01: 1.0}, {0.01: 1.0}, []))
    with pytest.raises(BadSelection, match="only layers were given; give scores"):
        compared(TuneRequest(world.inputs(), "top:30%", settings=QUICK), tmp_path / "one")
    result = compared(TuneRequest(world.inputs(), "last:4", ("random:4",), settings=QUICK), tmp_path / "two")
    assert [arm.policy for arm in result.arms] == ["last:4", "random:4"]


def test_lora_on_whole_blocks_is_refused_before_anything_trains(world, tmp_path):
    asked = TuneRequest(world.inputs(), "last:1", settings=QUICK, granularity="block")
    with pytest.raises(BadSelection, match="`method=full`"):
        compared(asked, tmp_path / "run")


def test_impossible_requests_are_refused_when_they_are_made():
    with pytest.raises(BadInput, match="seeds=0"):
        TuneRequest(Inputs("nowhere"), seeds=0)
    with pytest.raises(UnknownName, match="unknown value of `method` 'loraa'"):
        dataclasses.replace(QUICK, method="loraa")


def test_scores_of_another_model_say_what_differs(tmp_path):
    model = build("llama")
    with pytest.raises(
        BadScores,
        match=r"'elsewhere' \(GPT2LMHeadModel\), and the model 'mine' \(LlamaForCausalLM\) differs: "
        r"12 of the 12 scored layers are not in it \(transformer\.h\.0\.attn\.c_attn",
    ):
        check_scores_fit(scores_of(build("gpt2"), "elsewhere"), model, "mine")
    wide = make(tmp_path, blocks=4).inputs().load_model().model
    with pytest.raises(
        BadScores, match=r"7 of the 29 .*model\.layers\.3.*22 have another size \(model\.layers\.0\..*when scored"
    ):
        check_scores_fit(scores_of(wide), model, "mine")


def test_scores_of_a_model_of_the_same_shape_are_taken_with_a_note(capsys):
    model = build("olmoe")
    check_scores_fit(scores_of(model, "elsewhere"), model, "mine")
    assert "the scores are of elsewhere; the model is mine" in capsys.readouterr().err
    check_scores_fit(scores_of(model, "mine"), model, "mine")
    experts = dataclasses.replace(scores_of(model, "mine"), layers=named_layers(model, "expert"), values=np.ones(12))
    check_scores_fit(experts, model, "mine")
    assert not capsys.readouterr().err


def test_scores_of_another_model_stop_a_comparison(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded a model"))
    with pytest.raises(BadScores, match="Score this model"):
        compared(TuneRequest(world.inputs(), settings=QUICK), tmp_path / "run", scores_of(build("gpt2")))


def test_random_policies_take_the_training_seed_unless_they_have_their_own():
    layers = named_layers(build("llama"))
    names = [choose(None, layers, "random:5", seed).names for seed in range(3)]
    assert len(set(names)) == 3 and names[1] == choose(None, layers, "random:5", 1).names
    assert (
        choose(None, layers, "random:5:seed=2", 0).names == choose(None, layers, "random:5:seed=2", 1).names == names[2]
    )
    assert choose(None, layers, "not:random:5", 1).names != choose(None, layers, "not:random:5", 2).names
    assert len(choose(None, layers, "all", 0)) == len(layers)


def test_a_long_policy_has_a_name_that_fits_a_file_system():
    one = module._name("blocks:" + ",".join(map(str, range(90))), 0, 1e-3)
    other = module._name("blocks:" + ",".join(map(str, range(91))), 0, 1e-3)
    assert len(one) < 200 and one != other


def test_the_base_model_is_loaded_as_the_method_needs_it(world, monkeypatch):
    seen = []
    monkeypatch.setattr(Inputs, "load_model", lambda self, *, four_bit=False: seen.append(four_bit))
    for method in ("lora", "qlora", "full"):
        module._load(TuneRequest(world.inputs(), settings=dataclasses.replace(QUICK, method=method)))
    assert seen == [False, True, False]
