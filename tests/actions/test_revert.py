"""Taking changes back: gates of a selection in memory, and a checkpoint put together from two."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from keylayers.actions import kept_only, write_reverted
from keylayers.actions import reverting as module
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
    with kept_only(base, deltas, none, remainder="base"):
        assert torch.allclose(logits(base, name), before, atol=1e-6)
    assert torch.equal(logits(base, name), before)


def test_the_selected_changes_alone_equal_a_model_put_together_by_hand():
    base = build("llama")
    tuned = tuned_from(base)
    deltas = deltas_from_checkpoints(base, tuned, named_layers(base))
    by_hand = copy.deepcopy(base)
    state = {f"{name}.weight": tuned.state_dict()[f"{name}.weight"] for name in NAMES}
    by_hand.load_state_dict(state, strict=False)
    with kept_only(base, deltas, chosen(base, *NAMES), remainder="base"):
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


@pytest.mark.parametrize("remainder", ["tuned", "base"])
def test_a_written_checkpoint_takes_every_tensor_from_the_right_side_bit_for_bit(pair, tmp_path, remainder):
    base, tuned, model = pair
    selection = chosen(model, *NAMES)
    made = write_reverted(base, tuned, selection, tmp_path / "out", remainder=remainder)
    first, second, mixed = (load_file(place / "model.safetensors") for place in (base, tuned, tmp_path / "out"))
    scored = {name for layer in selection.layers for name in layer.parameters}
    kept = {f"{name}.weight" for name in NAMES} | (set(first) - scored if remainder == "tuned" else set())
    assert mixed.keys() == first.keys()
    for name, value in mixed.items():
        assert torch.equal(value, (second if name in kept else first)[name]), name
    assert (made.tuned, len(made.tensors)) == (len(kept), len(first))
    assert f"8 tensors are the {remainder} model's: model.embed_tokens.weight, model.layers.*." in made.remainder
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


@pytest.mark.parametrize("granularity", ["linear", "expert"])
def test_experts_that_are_stored_one_by_one_or_as_one_tensor_go_back_alike(tmp_path, granularity):
    """OLMoE's checkpoint has a tensor per expert, gpt-oss' one for all of a block."""
    from transformers import AutoModelForCausalLM

    for name in ("olmoe", "gpt-oss"):
        model, folder = build(name), tmp_path / name
        model.save_pretrained(folder / "base")
        other = tuned_from(model)
        other.save_pretrained(folder / "tuned")
        layers = named_layers(model, granularity)
        kept = [layer.name for layer in layers if layer.block == 1 and "experts" in layer.name][:1]
        selection = Selection.of(layers, names=kept)
        write_reverted(folder / "base", folder / "tuned", selection, folder / "out", remainder="base")
        deltas = deltas_from_checkpoints(model, other, layers)
        loaded = AutoModelForCausalLM.from_pretrained(folder / "out")
        with kept_only(model, deltas, selection, remainder="base"):
            assert torch.allclose(logits(model, name), logits(loaded, name), atol=1e-6)
        assert not torch.allclose(logits(model, name), logits(loaded, name), atol=1e-6)


def test_a_head_tied_in_both_but_stored_twice_in_one(tmp_path):
    model = build("llama-tied")
    model.save_pretrained(tmp_path / "base")
    tuned_from(model).save_pretrained(tmp_path / "tuned")
    state = load_file(tmp_path / "base" / "model.safetensors")
    save_file(
        {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, tmp_path / "base/model.safetensors"
    )
    write_reverted(tmp_path / "base", tmp_path / "tuned", chosen(model, *NAMES), tmp_path / "out", remainder="base")
    mixed = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in mixed
    assert torch.equal(mixed["model.embed_tokens.weight"], state["model.embed_tokens.weight"])


def test_rows_of_tokens_that_only_the_tuned_model_knows_stay_in_either_case(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    other = tuned_from(model)
    other.resize_token_embeddings(99)
    other.save_pretrained(tmp_path / "tuned")
    made = write_reverted(
        tmp_path / "base", tmp_path / "tuned", chosen(model, *NAMES), tmp_path / "out", remainder="base"
    )
    assert "the tuned model has 99 rows, the base 96" in made.notes[0]
    first, second, mixed = (load_file(tmp_path / place / "model.safetensors") for place in ("base", "tuned", "out"))
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(mixed[name], torch.cat([first[name], second[name][96:]]))


def test_buffers_that_the_model_computes_itself_are_passed_over(pair, tmp_path):
    base, tuned, model = pair
    state = load_file(tuned / "model.safetensors")
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tuned / "model.safetensors")
    write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == len(state) + 1


def test_quantised_and_equal_checkpoints_are_refused(pair, tmp_path):
    base, tuned, model = pair
    with pytest.raises(BadInput, match="hold equal tensors: nothing was tuned"):
        write_reverted(base, base, chosen(model, *NAMES), tmp_path / "out")
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(BadInput, match=r"is quantised \(gptq\)"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")
    (tuned / "config.json").write_text(json.dumps(config))
    state = load_file(tuned / "model.safetensors")
    state["lm_head.weight"] = state["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(state, tuned / "model.safetensors")
    with pytest.raises(BadInput, match=r"is quantised \(see lm_head\.weight\)"):
        write_reverted(base, tuned, chosen(model, *NAMES), tmp_path / "out")


@pytest.mark.parametrize("remainder", ["tuned", "base"])
def test_an_adapter_is_merged_for_the_selected_layers_alone(tmp_path, remainder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from keylayers.models import deltas_of

    build("llama").save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], trainable_token_indices=[5], init_lora_weights=False)
    adapted = get_peft_model(build("llama"), config)
    with torch.no_grad():
        adapted.base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta["default"] += 1
    adapted.save_pretrained(str(tmp_path / "adapter"))
    model = build("llama")
    selection = chosen(model, *NAMES)
    made = write_reverted(tmp_path / "base", tmp_path / "adapter", selection, tmp_path / "out", remainder=remainder)
    assert made.tuned == (3 if remainder == "tuned" else 2)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    deltas = deltas_of(model, tmp_path / "adapter", selection.layers)
    with kept_only(model, deltas, selection, remainder=remainder):
        wanted = logits(model)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted, atol=1e-5)


def test_adapters_and_missing_folders_are_refused(pair, tmp_path):
    base, tuned, model = pair
    with pytest.raises(BadInput, match="no checkpoint folder at"):
        write_reverted(base, tmp_path / "nowhere", chosen(model, *NAMES), tmp_path / "out")
    (tuned / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"is a LoRA adapter, not a model"):
        write_reverted(tuned, base, chosen(model, *NAMES), tmp_path / "out")


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
