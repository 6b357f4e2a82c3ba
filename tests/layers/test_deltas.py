import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.adapted import deltas_from_adapter, unloaded
from keylayers.layers.deltas import Deltas, DenseDelta, LowRankDelta, deltas_from_checkpoints, held_delta
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of, tensors_of
from keylayers.layers.tensors import tensors_on_disk
from tests.layers.helpers import finest, full_state, noisy_copy, pair, same_state, with_lora
from tests.tiny_models import ALL, build


def every(deltas: Deltas) -> dict[str, DenseDelta | LowRankDelta]:
    return {name: delta for change in (*deltas.changes, deltas.remainder) for name, delta in change.items()}


@pytest.mark.parametrize("name", ALL)
def test_base_and_deltas_add_up_to_the_tuned_model(name: str) -> None:
    base, tuned = pair(name)
    deltas = deltas_from_checkpoints(base, tuned, named_layers(base, finest(name)))
    assert deltas.source == "the tuned model - the base model"
    wanted, found = tensors_of(tuned), tensors_of(base)
    for key, delta in every(deltas).items():
        assert torch.allclose(found[key] + delta.dense(), wanted[key], atol=1e-6)
    same = {key for key in found if torch.equal(found[key], wanted[key])}
    assert {id(found[key]) for key in every(deltas)} == {id(value) for key, value in found.items() if key not in same}
    for layer, change in zip(deltas.layers, deltas.changes, strict=True):
        assert set(change) == set(layer.parameters)


def test_running_statistics_are_part_of_the_remainder() -> None:
    base, tuned = pair("cifar-resnet")
    deltas = deltas_from_checkpoints(base, tuned, named_layers(base, "conv"))
    assert {"bn1.running_mean", "bn1.running_var", "bn1.weight", "linear.weight"} <= set(deltas.remainder)
    assert not any("num_batches" in key for key in deltas.remainder)


def test_what_did_not_change_is_left_out() -> None:
    base = build("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight += 1
        tuned.model.norm.weight += 1
    layers = named_layers(base)
    deltas = deltas_from_checkpoints(base, tuned, layers)
    assert [layer.name for layer, change in zip(layers, deltas.changes, strict=True) if change] == [
        "model.layers.1.mlp.up_proj"
    ]
    assert set(deltas.remainder) == {"model.norm.weight"}
    norms = deltas.norms()
    assert norms.dtype == torch.float64 and norms.count_nonzero() == 1
    assert float(norms.max()) == pytest.approx((32 * 48) ** 0.5)
    kept = deltas_from_checkpoints(base, tuned, layers, unchanged_kept=True)
    assert all(kept.changes) and torch.equal(kept.norms(), norms)


def test_the_bases_own_precision_counts(tmp_path: Path) -> None:
    base, tuned = pair("llama")
    base.bfloat16().save_pretrained(tmp_path / "base")
    tuned.bfloat16().save_pretrained(tmp_path / "tuned")
    loaded = build("llama")
    loaded.load_state_dict({key: value.float() for key, value in base.state_dict().items()})
    layers = named_layers(loaded)
    from_model = deltas_from_checkpoints(loaded, tensors_on_disk(tmp_path / "tuned"), layers)
    from_disk = deltas_from_checkpoints(tensors_on_disk(tmp_path / "base"), tensors_on_disk(tmp_path / "tuned"), layers)
    for key, delta in every(from_disk).items():
        assert delta.dense().dtype == torch.float32 and torch.equal(delta.dense(), every(from_model)[key].dense())


@pytest.mark.parametrize("name", ["llama-tied", "gemma2", "gpt2", "t5", "bert", "hf-resnet"])
def test_a_model_in_memory_meets_its_tuned_checkpoint_on_disk(tmp_path: Path, name: str) -> None:
    """Disk holds a tied tensor once, and batch counters that memory's real numbers leave out."""
    base, tuned = pair(name)
    tuned.save_pretrained(tmp_path)
    layers = named_layers(base, finest(name))
    deltas, wanted = (deltas_from_checkpoints(base, other, layers) for other in (tensors_on_disk(tmp_path), tuned))
    assert every(deltas).keys() == every(wanted).keys()
    assert all(torch.equal(delta.dense(), every(wanted)[key].dense()) for key, delta in every(deltas).items())


def test_holding_loads_everything_once() -> None:
    calls: list[str] = []
    layers = named_layers(build("llama"))[:2]
    lazy = [DenseDelta(lambda n=layer.name: (calls.append(n), torch.ones(2))[1]) for layer in layers]
    deltas = Deltas(layers, tuple({layer.parameters[0]: delta} for layer, delta in zip(layers, lazy, strict=True)))
    held = deltas.held()
    for _ in range(3):
        held.norms()
    assert len(calls) == 2
    deltas.norms()
    assert len(calls) == 4


@pytest.mark.parametrize("name", ALL)
def test_lora_deltas_equal_what_merging_adds(name: str) -> None:
    base = build(name)
    layers, plain = named_layers(base, finest(name)), copy.deepcopy(base)
    adapted = with_lora(base)
    deltas = deltas_from_adapter(adapted, layers)
    assert deltas.source == "LoRA adapter 'default'" and not deltas.remainder and all(deltas.changes)
    merged = parameters_of(with_lora(copy.deepcopy(plain)).merge_and_unload())
    for key, value in parameters_of(plain).items():
        change = every(deltas)[key].dense() if key in every(deltas) else torch.zeros_like(value)
        assert torch.allclose(value + change, merged[key], atol=1e-6), key
    restored = unloaded(adapted)
    assert same_state(full_state(plain)["tensors"], full_state(restored)["tensors"]), "unloading is exact to the bit"


def test_a_low_rank_delta_is_scaling_times_up_times_down() -> None:
    up, down = torch.randn(5, 2), torch.randn(2, 3)
    assert torch.allclose(LowRankDelta(up, down, 0.5).dense(), 0.5 * up @ down)
    assert torch.allclose(LowRankDelta(up, down, 0.5, transposed=True).dense(), 0.5 * (up @ down).T)


def test_rank_stabilised_scaling_is_used() -> None:
    base = build("llama")
    layers = named_layers(base)
    deltas = deltas_from_adapter(with_lora(base, rank=4, use_rslora=True, lora_alpha=6), layers)
    assert deltas.changes[0][layers[0].parameters[0]].scaling == pytest.approx(6 / 4**0.5)


def test_modules_trained_in_full_beside_the_adapter_count() -> None:
    base = build("llama")
    layers = named_layers(base)
    adapted = with_lora(base, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight += 1
        adapted.base_model.model.model.embed_tokens.modules_to_save["default"].weight += 2
    deltas = deltas_from_adapter(adapted, layers)
    assert torch.allclose(deltas.changes[-1]["lm_head.weight"].dense(), torch.ones(96, 32), atol=1e-6)
    assert torch.allclose(deltas.remainder["model.embed_tokens.weight"].dense(), torch.full((96, 32), 2.0), atol=1e-6)
    assert not deltas.low_rank


def test_adapted_routers_are_the_remainder() -> None:
    """peft's `target_parameters` reaches routers, which are no linear layers; the change must not be lost."""
    base = build("olmoe")
    layers, plain = named_layers(base), copy.deepcopy(base)
    adapted = with_lora(base, target_modules=["q_proj"], target_parameters=["mlp.gate.weight"])
    deltas = deltas_from_adapter(adapted, layers)
    assert set(deltas.remainder) == {f"model.layers.{i}.mlp.gate.weight" for i in range(3)}
    merged = parameters_of(adapted.merge_and_unload())
    for key, delta in deltas.remainder.items():
        assert torch.allclose(parameters_of(plain)[key] + delta.dense(), merged[key], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "more than a product of two matrices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "more than a product of two matrices"),
    ],
)
def test_adapters_that_are_no_plain_product_are_refused(settings: dict, message: str) -> None:
    base = build("qwen2")  # its projections have biases
    layers = named_layers(base)
    with pytest.raises(BadInput, match=message):
        deltas_from_adapter(with_lora(base, target_modules=["q_proj", "v_proj"], **settings), layers)


def test_a_model_without_that_adapter_is_refused() -> None:
    base = build("llama")
    layers = named_layers(base)
    with pytest.raises(BadInput, match="no LoRA adapter named 'default'"):
        deltas_from_adapter(base, layers)
    with pytest.raises(BadInput, match="no LoRA adapter named 'other'"):
        deltas_from_adapter(with_lora(base), layers, adapter="other")


def test_equal_checkpoints_are_refused() -> None:
    base = build("llama")
    with pytest.raises(BadInput, match="the base model and the tuned model hold equal tensors: nothing was tuned"):
        deltas_from_checkpoints(base, copy.deepcopy(base), named_layers(base))


def test_changes_outside_the_layers_alone_are_refused_with_their_names() -> None:
    base = build("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.norm.weight += 1
    with pytest.raises(BadInput, match=r"tuning changed none of the scored layers, only model\.norm\.weight;"):
        deltas_from_checkpoints(base, tuned, named_layers(base))


@pytest.mark.parametrize("other", ["qwen2", "phi3"])
def test_another_model_is_no_tuned_version(other: str) -> None:
    base = build("llama")
    with pytest.raises(BadInput, match=r"not two versions of one model.*only in the tuned"):
        deltas_from_checkpoints(base, build(other), named_layers(base))


def test_layers_of_another_model_are_refused_with_near_names() -> None:
    base, tuned = pair("gpt2")
    with pytest.raises(UnknownName, match="parameter of a layer"):
        deltas_from_checkpoints(base, tuned, named_layers(build("llama")))


def test_quantised_weights_are_refused_with_the_remedy() -> None:
    base, tuned = pair("llama")
    base.lm_head.weight = nn.Parameter(torch.zeros(96, 16, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(
        BadInput, match=r"the base model is quantised \(lm_head\.weight is stored as uint8\); load it without"
    ):
        deltas_from_checkpoints(base, tuned, named_layers(tuned))


def test_expert_slices_share_out_the_change_of_a_fused_tensor() -> None:
    base, tuned = pair("mixtral")
    experts, fused = (deltas_from_checkpoints(base, tuned, named_layers(base, g)) for g in ("expert", "linear"))
    name = "model.layers.2.mlp.experts.down_proj"
    stacked = torch.stack([every(experts)[f"{name}[{index}]"].dense() for index in range(4)])
    assert torch.equal(stacked, every(fused)[name].dense())
    of_block = [i for i, layer in enumerate(fused.layers) if layer.block == 2 and "experts" in layer.name]
    total = fused.norms()[of_block].square().sum()
    assert float(experts.norms()[-4:].square().sum()) == pytest.approx(float(total))


def test_what_experts_hold_grows_with_their_number(tmp_path: Path) -> None:
    """Each reads its own slice of the fused tensors, and holds no more than that."""
    held, read = {}, {}
    for count in (4, 16):
        tuned = {"experts.weight": torch.randn(count, 8, 8)}
        save_file({"experts.weight": torch.zeros(count, 8, 8)}, tmp_path / "base.safetensors")
        save_file(tuned, tmp_path / "tuned.safetensors")
        layers = [Layer(f"experts[{i}]", 0, "experts", (f"experts.weight[{i}]",), 64) for i in range(count)]
        sources = [tensors_on_disk(tmp_path / f"{name}.safetensors") for name in ("base", "tuned")]
        deltas = deltas_from_checkpoints(*sources, layers)
        changes = [change[f"experts.weight[{i}]"] for i, change in enumerate(deltas.held().changes)]
        assert all(torch.equal(one.dense(), tuned["experts.weight"][i]) for i, one in enumerate(changes))
        held[count] = sum(one.dense().untyped_storage().nbytes() for one in changes)
        read[count] = max(source.row("experts.weight", 1).untyped_storage().nbytes() for source in sources)
    assert held == {4: 4 * 256, 16: 16 * 256} and read[4] == read[16]


def test_slices_that_are_no_layer_are_the_remainder() -> None:
    base, tuned = pair("mixtral")
    layers = named_layers(base, "expert")[:3]
    deltas = deltas_from_checkpoints(base, tuned, layers)
    assert {f"model.layers.0.mlp.experts.down_proj[{i}]" for i in range(4)} & set(deltas.remainder) == {
        "model.layers.0.mlp.experts.down_proj[3]"
    }
    assert len(deltas.norms()) == 3


def test_uniform_and_low_rank() -> None:
    base, tuned = pair("llama")
    layers = named_layers(base)
    dense = deltas_from_checkpoints(base, tuned, layers)
    assert not dense.low_rank and torch.equal(dense.uniform(0.25), torch.full((22,), 0.25))
    assert deltas_from_adapter(with_lora(noisy_copy(base)), layers).low_rank
    assert torch.equal(held_delta(torch.ones(2)).dense(), torch.ones(2))
