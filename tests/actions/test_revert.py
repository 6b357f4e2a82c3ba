"""Taking changes back: gates of a selection in memory, and a checkpoint put together from two."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from keylayers.actions import kept_only, write_reverted
from keylayers.actions import revert as module
from keylayers.errors import BadInput
from keylayers.layers import named_layers
from keylayers.layers.deltas import deltas_from_checkpoints
from keylayers.runs.lock import locked_beside
from keylayers.runs.seals import seal
from keylayers.scores import Selection
from tests.tiny_models import build, inputs

NAMES = ("model.layers.0.mlp.up_proj", "model.layers.2.self_attn.q_proj")


def tuned_from(model, scale=0.05, seed=1):
    """A copy in which every parameter moved."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return other


def chosen(model, *names, **options):
    return Selection.of(named_layers(model), names=names, **options)


def logits(model, name="llama"):
    with torch.no_grad():
        return model(**inputs(name)).logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe", "phi3"])
def test_all_changes_give_the_tuned_model_and_none_the_base(name):
    base = build(name)
    tuned = tuned_from(base)
    deltas = deltas_from_checkpoints(base, tuned, named_layers(base))
    every = chosen(base, *(layer.name for layer in named_layers(base)), allow_total=True)
    none = chosen(base, allow_empty=True)
    before = logits(base, name)
    with kept_only(base, deltas, every):
        assert torch.allclose(logits(base, name), logits(tuned, name), atol=1e-6)
    with kept_only(base, deltas, none, remainder=False):
        assert torch.allclose(logits(base, name), before, atol=1e-6)
    assert torch.equal(logits(base, name), before)


def test_the_selected_changes_alone_equal_a_model_put_together_by_hand():
    base = build("llama")
    tuned = tuned_from(base)
    deltas = deltas_from_checkpoints(base, tuned, named_layers(base))
    by_hand = copy.deepcopy(base)
    state = {f"{name}.weight": tuned.state_dict()[f"{name}.weight"] for name in NAMES}
    by_hand.load_state_dict(state, strict=False)
    with kept_only(base, deltas, chosen(base, *NAMES), remainder=False):
        assert torch.allclose(logits(base), logits(by_hand), atol=1e-6)


def test_a_selection_at_another_granularity_is_refused():
    base = build("llama")
    deltas = deltas_from_checkpoints(base, tuned_from(base), named_layers(base))
    blocks = Selection.of(named_layers(base, "block"), blocks=[1])
    with pytest.raises(BadInput, match="one granularity"), kept_only(base, deltas, blocks):
        pass


@pytest.fixture
def pair(tmp_path):
    """(base folder, tuned folder, base model)."""
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    tuned_from(base).save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "tokenizer.json").write_text("{}")
    (tmp_path / "tuned" / "training_args.bin").write_bytes(b"pickle")
    return tmp_path / "base", tmp_path / "tuned", base


@pytest.mark.parametrize("remainder", [True, False])
def test_a_written_checkpoint_takes_every_tensor_from_the_right_side_bit_for_bit(pair, tmp_path, remainder):
    base, tuned, model = pair
    selection = chosen(model, *NAMES)
    taken = write_reverted(base, tuned, selection, tmp_path / "out", remainder=remainder)
    first, second, mixed = (load_file(place / "model.safetensors") for place in (base, tuned, tmp_path / "out"))
    scored = {name for layer in selection.layers for name in layer.parameters}
    kept = {f"{name}.weight" for name in NAMES} | (set(first) - scored if remainder else set())
    assert mixed.keys() == first.keys()
    for name, value in mixed.items():
        assert torch.equal(value, (second if name in kept else first)[name]), name
    assert taken == (len(kept), len(first) - len(kept))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= files
    assert "training_args.bin" not in files
    assert not list(tmp_path.glob(".out*"))


def test_large_checkpoints_come_in_shards_that_transformers_loads(pair, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    base, tuned, model = pair
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 3 and all((tmp_path / "out" / shard).is_file() for shard in shards)
    first = load_file(base / "model.safetensors")
    assert set(index["weight_map"]) == set(first)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in first.values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    second = load_file(tuned / "model.safetensors")
    assert torch.equal(loaded[f"{NAMES[0]}.weight"], second[f"{NAMES[0]}.weight"])
    assert torch.equal(loaded["model.layers.1.mlp.up_proj.weight"], first["model.layers.1.mlp.up_proj.weight"])
    again = tmp_path / "again"
    write_reverted(base, tmp_path / "out", chosen(model, *NAMES), again)  # sharded input, and its index is not copied
    monkeypatch.setattr(module, "SHARD_BYTES", 2**31)
    shutil.rmtree(again)
    write_reverted(base, tmp_path / "out", chosen(model, *NAMES), again)
    assert not (again / "model.safetensors.index.json").exists()


def test_an_existing_out_is_refused_and_left_alone(pair, tmp_path):
    base, tuned, model = pair
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(BadInput, match="exists already; give another `out`"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_two_at_once_do_not_meet_and_what_a_killed_one_left_is_swept(pair, tmp_path):
    base, tuned, model = pair
    (tmp_path / ".out.0123abcd.tmp").mkdir()
    (tmp_path / ".out.backup.tmp").write_text("somebody's")
    with locked_beside(tmp_path / "out"), pytest.raises(BadInput, match="in use by process"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    assert {path.name for path in tmp_path.glob("*out*")} == {"out", ".out.backup.tmp"}


def test_a_sealed_model_is_read_only_whole_and_its_seal_stays_with_it(pair, tmp_path):
    base, tuned, model = pair
    seal(tuned)
    write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    assert not (tmp_path / "out" / "seal.json").exists()
    weights = tuned / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInput, match=r"model.safetensors' does not match its sha256"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "again")


def test_checkpoints_of_different_models_are_refused_naming_what_differs(pair, tmp_path):
    base, tuned, model = pair
    stored = load_file(tuned / "model.safetensors")
    stored["model.layers.9.extra"] = stored.pop("model.norm.weight")
    save_file(stored, tuned / "model.safetensors")
    with pytest.raises(BadInput, match=r"model\.norm\.weight.*model\.layers\.9\.extra"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_of_another_model_are_refused(pair, tmp_path):
    base, tuned, _ = pair
    foreign = Selection.of(named_layers(build("gpt2")), blocks=[1])
    with pytest.raises(BadInput, match=r"scored tensors, first transformer\.h\.0.*another model or granularity"):
        write_reverted(base, tuned, foreign, tmp_path / "out")


def test_scored_layers_that_the_checkpoint_spells_otherwise_are_refused_though_none_is_chosen(tmp_path):
    """OLMoE's experts are stored one by one; taken for the remainder, their changes would silently stay."""
    model = build("olmoe")
    model.save_pretrained(tmp_path / "base")
    tuned_from(model).save_pretrained(tmp_path / "tuned")
    selection = chosen(model, "model.layers.1.self_attn.q_proj")
    with pytest.raises(BadInput, match=r"experts.*names its tensors otherwise"):
        write_reverted(tmp_path / "base", tmp_path / "tuned", selection, tmp_path / "out")


def test_adapters_and_missing_folders_are_refused(pair, tmp_path):
    base, tuned, model = pair
    with pytest.raises(BadInput, match="no checkpoint folder at"):
        write_reverted(base, tmp_path / "nowhere", chosen(model, *NAMES), tmp_path / "out")
    (tuned / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"is a LoRA adapter.*merge"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")


def test_a_place_that_cannot_be_written_is_named(pair, tmp_path):
    base, tuned, model = pair
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot write .*file/out"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "file" / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(pair, tmp_path, monkeypatch, error):
    import safetensors.torch

    base, tuned, model = pair
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    save, calls = safetensors.torch.save_file, []

    def failing(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise error
        return save(*args, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    with pytest.raises((KeyboardInterrupt, BadInput)):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    assert len(calls) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]
