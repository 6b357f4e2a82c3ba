"""Names, capture, intervention and gates are the same however a network is wrapped."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from keylayers.errors import BadInput
from keylayers.layers.capturing import capture
from keylayers.layers.intervene import scaled, skipped
from keylayers.layers.layer import GRANULARITIES
from keylayers.layers.naming import named_layers
from keylayers.layers.prefix import block_outputs, resumed
from keylayers.layers.structure import canonical_name, parameter_owner, parameters_of, tensors_of, unwrap
from tests.layers.helpers import forward_batch, logits
from tests.tiny_models import SMALL, build


class Parallel(nn.Module):
    """What DataParallel and DistributedDataParallel look like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.module(*args, **kwargs)


def lora(model: nn.Module, **settings: object) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return adapted.eval()


def lora_some(model: nn.Module) -> nn.Module:
    return lora(model, target_modules=["model.layers.0.self_attn.o_proj", "model.layers.2.mlp.down_proj"])


def lora_and_saved_head(model: nn.Module) -> nn.Module:
    return lora(model, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def checkpointed_blocks(model: nn.Module) -> nn.Module:
    stack = unwrap(model).get_submodule("model.layers")
    for index, block in enumerate(list(stack)):
        stack[index] = checkpoint_wrapper(block)
    return model


def compiled_blocks(model: nn.Module) -> nn.Module:
    stack = unwrap(model).get_submodule("model.layers")
    for index, block in enumerate(list(stack)):
        stack[index] = torch.compile(block, backend="eager")
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "lora": lora_some,
    "saved-head": lora_and_saved_head,
    "parallel": Parallel,
    "compile": compiled,
    "compile-in-place": compiled_in_place,
    "checkpoint": checkpointed_blocks,
    "checkpointed-root": checkpoint_wrapper,
    "compiled-blocks": compiled_blocks,
    "lora+parallel": lambda model: Parallel(lora_some(model)),
    "lora+checkpoint+parallel": lambda model: Parallel(checkpointed_blocks(lora_some(model))),
    "lora+compile": lambda model: compiled(lora_and_saved_head(model)),
    "parallel+compile": lambda model: compiled(Parallel(lora_some(model))),
    "compile+parallel": lambda model: Parallel(compiled(checkpointed_blocks(model))),
}


def records(model: nn.Module) -> dict[str, list]:
    found = {}
    for granularity in GRANULARITIES:
        try:
            found[granularity] = list(named_layers(model, granularity))
        except BadInput:
            found[granularity] = []
    return found


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_layers_are_the_unwrapped_models(wrapper: str) -> None:
    plain = build("phi3" if "lora" not in wrapper and "saved" not in wrapper else "qwen2")
    expected = records(plain)
    wrapped = WRAPPERS[wrapper](copy.deepcopy(plain))
    assert records(wrapped) == expected
    assert list(parameters_of(wrapped)) == list(parameters_of(plain))
    assert list(tensors_of(wrapped)) == list(tensors_of(plain))
    for name, value in parameters_of(wrapped).items():
        assert torch.equal(value, parameters_of(plain)[name])
        owner, key = parameter_owner(wrapped, name)
        assert owner._parameters[key] is value


# Compiling takes seconds; the two omitted here only nest what the others hold.
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name not in ("parallel+compile", "compile+parallel")])
def test_capture_intervention_and_resuming_work_on_the_wrapped_model(wrapper: str) -> None:
    model = WRAPPERS[wrapper](build("llama"))
    batch, block, linear = forward_batch("llama"), "model.layers.1", "model.layers.2.mlp.down_proj"
    with torch.no_grad():
        native = logits(model, batch)  # compiled code exists before any hook
        with capture(model, [block, linear]) as seen:
            assert torch.allclose(logits(model, batch), native, atol=1e-6)
        assert set(seen.outputs) == {block, linear} and seen.outputs[block].shape == (2, 12, 32)
        with capture(model, ["lm_head"]) as head:
            logits(model, batch)
        assert torch.allclose(head.outputs["lm_head"], native, atol=1e-6)
        with skipped(model, [block]), capture(model, [block, "model.layers.2"]) as around:
            changed = logits(model, batch)
        assert torch.equal(around.inputs["model.layers.2"], around.inputs[block])
        assert not torch.allclose(changed, native, atol=1e-3)
        with scaled(model, [linear], 1.0):
            assert torch.allclose(logits(model, batch), native, atol=1e-6)
        with block_outputs(model) as kept:
            logits(model, batch)
        with resumed(model, kept, 2), capture(model, ["model.layers.0.mlp", "model.layers.2.mlp"]) as computed:
            assert torch.allclose(logits(model, batch), native, atol=1e-6)
        assert set(computed.outputs) == {"model.layers.2.mlp"}
        assert torch.allclose(logits(model, batch), native, atol=1e-6)


EXPERT_TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("name", ["olmoe", "qwen3-moe", "mixtral"])
def test_names_are_right_with_lora_on_fused_experts(name: str) -> None:
    plain = build(name)
    wrapped = lora(copy.deepcopy(plain), target_modules=["q_proj"], target_parameters=EXPERT_TARGETS)
    assert any("ParamWrapper" in type(module).__name__ for module in wrapped.modules())
    assert records(wrapped) == records(plain) == records(Parallel(wrapped))
    with torch.no_grad(), capture(wrapped, ["model.layers.1.mlp.experts"]) as seen:
        logits(wrapped, forward_batch(name))
    assert seen.outputs["model.layers.1.mlp.experts"].shape[-1] == 32


def test_names_are_right_with_all_linear_lora_on_a_mixture() -> None:
    """peft's `all-linear` reaches experts as well; ours must still list what the plain model has."""
    plain = build("olmoe")
    wrapped = lora(copy.deepcopy(plain), target_modules="all-linear")
    assert records(wrapped) == records(plain)


def test_gpt2_names_are_right_with_lora_on_conv1d() -> None:
    plain = build("gpt2")
    wrapped = lora(copy.deepcopy(plain), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    assert records(wrapped) == records(plain)


@pytest.mark.parametrize(
    "given",
    [
        "model.layers.3.mlp.down_proj.weight",
        "base_model.model.model.layers.3.mlp.down_proj.base_layer.weight",
        "module.model.layers.3.mlp.down_proj.weight",
        "module.base_model.model.model.layers.3._checkpoint_wrapped_module.mlp.down_proj.base_layer.weight",
        "_orig_mod.module.model.layers.3.mlp.down_proj.weight",
        "_orig_mod.base_model.model.model.layers.3.mlp.down_proj.original_module.weight",
        "_fsdp_wrapped_module.model.layers.3._fsdp_wrapped_module.mlp.down_proj.weight",
        "_checkpoint_wrapped_module.base_model.model.model.layers.3._orig_mod.mlp.down_proj.weight",
    ],
)
def test_canonical_names(given: str) -> None:
    assert canonical_name(given) == "model.layers.3.mlp.down_proj.weight"


def test_names_that_only_look_wrapped_stay() -> None:
    for name in ("model.base_layer_norm.weight", "encoder.module.weight", "base_layers.0.weight"):
        assert canonical_name(name) == name


@pytest.mark.parametrize("wrapper", ["lora", "parallel", "compile", "parallel+compile"])
def test_unwrap_gives_the_network_itself(wrapper: str) -> None:
    plain = build("llama")
    assert unwrap(WRAPPERS[wrapper](plain)) is plain
    assert unwrap(plain) is plain


def test_a_module_that_owns_one_named_module_and_parameters_is_no_wrapper() -> None:
    class Own(Parallel):
        def __init__(self) -> None:
            super().__init__(nn.Linear(2, 2))
            self.weight = nn.Parameter(torch.zeros(1))

    model = Own()
    assert unwrap(model) is model and "module.weight" in parameters_of(model)


def test_four_bit_layers_have_logical_sizes_and_can_be_hooked(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from keylayers.models import load_model

    # nf4 blocks hold 64 weights, so no dimension is smaller; Phi-3 owns its layers in another order than it calls them.
    plain = hf.Phi3ForCausalLM(hf.Phi3Config(**{**SMALL, "hidden_size": 64, "intermediate_size": 128}))
    plain.save_pretrained(tmp_path)
    packed = load_model(str(tmp_path), four_bit=True, device="cpu").model
    assert parameters_of(packed)["model.layers.0.mlp.down_proj.weight"].dtype == torch.uint8
    assert records(packed) == records(plain)
    wrapped = Parallel(lora(packed, target_modules=["o_proj"]))
    assert records(wrapped) == records(plain)
    batch = forward_batch("phi3")
    with torch.no_grad(), capture(wrapped, ["model.layers.1.mlp.down_proj"]) as seen:
        native = logits(wrapped, batch)
        with skipped(wrapped, ["model.layers.1"]):
            assert not torch.allclose(logits(wrapped, batch), native, atol=1e-3)
    assert seen.outputs["model.layers.1.mlp.down_proj"].shape == (2, 12, 64)
    assert records(packed) == records(plain), "the first forward pass repacks the weights on some processors"
