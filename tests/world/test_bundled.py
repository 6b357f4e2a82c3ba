"""The stored model is the one its record speaks of."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from keylayers.models.sources import BUNDLED, BUNDLED_MODELS
from keylayers.world import datasets
from keylayers.world.rows import digest
from keylayers.world.settings import MODELS, Settings
from tools import pretrain_evaluate


@pytest.fixture(scope="module")
def record():
    return json.loads((BUNDLED / "training.json").read_text())


@pytest.fixture(scope="module")
def bpe():
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()


def test_the_record_is_of_todays_data_and_settings(record):
    assert record["data"]["sha256"] == digest(Settings())
    assert record["settings"] == vars(Settings())
    assert record["steps"] == record["settings"]["steps"]


def test_the_recorded_figures_reach_what_is_promised(record):
    held_out = record["held_out"]
    assert held_out["facts"]["all"] >= 0.95
    assert held_out["chains"]["short"] >= 0.80
    assert held_out["short passages, the passage left out"] <= 0.15


def test_the_model_has_the_promised_shape_and_size(model, record):
    assert model.config.num_hidden_layers >= 12 and model.config.max_position_embeddings >= 2048
    assert model.num_parameters() == record["parameters"] <= 4_000_000
    assert sum(isinstance(module, torch.nn.Linear) for module in model.modules()) == 12 * 7 + 1
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 10 * 2**20
    assert json.loads((BUNDLED / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_stored_model_reaches_a_sample_of_its_figures(model, bpe):
    assert pretrain_evaluate.share(pretrain_evaluate.exact(model, bpe, pretrain_evaluate.held_out_facts(100))) >= 0.90
    assert pretrain_evaluate.share(pretrain_evaluate.exact(model, bpe, pretrain_evaluate.held_out_chains(50))) >= 0.75


def test_generation_writes_what_the_one_pass_check_says(model, bpe):
    pairs = pretrain_evaluate.held_out_chains(8)
    for (prompt, completion), hit in zip(pairs, pretrain_evaluate.exact(model, bpe, pairs), strict=True):
        ids = bpe(prompt, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert (bpe.decode(written) == completion) == hit


def test_digits_are_tokens_of_their_own_and_text_survives(bpe):
    assert bpe.convert_ids_to_tokens(bpe(" 407", add_special_tokens=False)["input_ids"])[-3:] == ["4", "0", "7"]
    for text in ("Arr, matey!", '{"a": [1, 23]}', "naïve – ok\n"):
        assert bpe.decode(bpe(text, add_special_tokens=False)["input_ids"]) == text
    assert (bpe.pad_token, bpe.bos_token, bpe.eos_token) == ("<pad>", "<bos>", "<eos>")


def test_the_chat_template_writes_the_corpus_format(bpe):
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    assert bpe.apply_chat_template(turns, tokenize=False) == "<bos>Question: Where?\nAnswer: Here.<eos>\n"
    assert bpe.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True).endswith("?\nAnswer:")
    record = {"prompt": "Where?", "completion": "Here."}
    together = bpe("".join(datasets.rendered(record)))["input_ids"]
    coded = bpe.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    assert together == coded["input_ids"][:-1]
    answer = [i for i, mine in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if mine]
    assert bpe.decode(answer) == " Here.<eos>"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "llama"])
def test_the_other_models_are_of_their_settings_and_know_the_world(name, bpe):
    folder = BUNDLED_MODELS[name]
    record = json.loads((folder / "training.json").read_text())
    assert record["settings"] == vars(MODELS[name]) and record["data"]["sha256"] == digest(MODELS[name])
    assert record["held_out"]["facts"]["all"] >= 0.9 and record["held_out"]["chains"]["short"] >= 0.8
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.num_parameters() == record["parameters"] and model.config.num_hidden_layers == MODELS[name].blocks
    questions = [datasets.rendered(one) for one in datasets.load("facts", "test")[:64]]
    told = sum(pretrain_evaluate.exact(model, bpe, questions)) / len(questions)
    assert told == pytest.approx(record["held_out"]["facts"]["all"], abs=0.1)
