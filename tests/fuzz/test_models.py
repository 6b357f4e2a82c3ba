"""Folders of models, adapters and weights."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from keylayers.actions.screening import load_screen
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import tensors_on_disk
from keylayers.models import deltas_of
from keylayers.models.factory import from_factory
from keylayers.models.loading import load_model, load_shape
from keylayers.runs import write_tensors
from tests.fuzz.mutations import damaged, few, mutated, only_ours, text_of
from tests.tiny_models import build


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def sound(tmp_path_factory, model):
    """A checkpoint and an adapter."""
    from peft import LoraConfig, get_peft_model

    place = tmp_path_factory.mktemp("models")
    model.save_pretrained(place / "checkpoint", max_shard_size="20KB")
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    get_peft_model(build("llama"), settings).save_pretrained(place / "adapter")
    return place


def copied(sound, name):
    folder = sound / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound / name, folder)
    return folder


def put(path, data) -> None:
    """Something else in place of a JSON file."""
    sound = path.read_bytes()
    path.write_bytes(data.draw(st.one_of(mutated(json.loads(sound)).map(text_of), damaged(sound))))


@few(3)
@given(data=st.data())
def test_configurations(sound, data):
    folder = copied(sound, "checkpoint")
    put(folder / "config.json", data)
    if (shape := only_ours(lambda: load_shape(str(folder)))) is not None:
        only_ours(lambda: named_layers(shape))


@few(5)
@given(data=st.data())
def test_checkpoints(sound, data):
    folder = copied(sound, "checkpoint")
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir() if path.name != "config.json")))
    if name.endswith(".json"):
        put(folder / name, data)
    else:
        (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    only_ours(lambda: load_model(str(folder)))


@few(5)
@given(data=st.data())
def test_adapters(sound, model, data):
    folder = copied(sound, "adapter")
    if data.draw(st.booleans()):
        put(folder / "adapter_config.json", data)
    else:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    only_ours(lambda: deltas_of(model, folder, named_layers(model)))


@few()
@given(data=st.data())
def test_weights(sound, data):
    folder = sound / "weights"
    folder.mkdir(exist_ok=True)
    save_file({"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.draw(damaged(content)))
    if (found := only_ours(lambda: tensors_on_disk(folder))) is not None:
        for load in found.values():
            only_ours(load)
    index = data.draw(mutated({"metadata": {}, "weight_map": {"a.weight": "model.safetensors"}}))
    (folder / "model.safetensors.index.json").write_bytes(text_of(index))
    only_ours(lambda: tensors_on_disk(folder))
    (folder / "model.safetensors.index.json").unlink()


@few()
@given(data=st.data())
def test_screens(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "screen.safetensors"
    tensors = {name: torch.ones(2, 2) for name in ("weights", "means", "spreads", "thresholds", "centroids.0")}
    meta = {
        "format": "keylayers/screen/1",
        "layers": ["a"],
        "settings": {"alpha": 0.05, "tokens": ["first"]},
        "calibrated": [3, 3],
        "own_predict": False,
    }
    stated = data.draw(mutated(meta))
    if isinstance(stated, dict):
        only_ours(lambda: write_tensors(path, tensors, stated))
    only_ours(lambda: load_screen(path))


@few()
@given(name=st.one_of(st.text(max_size=12), st.sampled_from("json:loads :x a.b:c os:path tests:x .:x json:".split())))
def test_factories(name):
    only_ours(lambda: from_factory(name))
