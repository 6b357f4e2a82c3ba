"""Small random models of every architecture family, built from configurations: no download, under a second each."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

from keylayers.models.cifar import CifarResNet

COMMON = {"vocab_size": 96, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _of(model: str, config: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, model)(getattr(hf, config)(**settings))


LANGUAGE: dict[str, Callable[[], nn.Module]] = {
    "llama": _of("LlamaForCausalLM", "LlamaConfig", **SMALL),
    "llama-tied": _of("LlamaForCausalLM", "LlamaConfig", **SMALL, tie_word_embeddings=True),
    "mistral": _of("MistralForCausalLM", "MistralConfig", **SMALL, sliding_window=8),
    "qwen2": _of("Qwen2ForCausalLM", "Qwen2Config", **SMALL),
    "qwen3": _of("Qwen3ForCausalLM", "Qwen3Config", **SMALL, head_dim=8),
    "gemma2": _of("Gemma2ForCausalLM", "Gemma2Config", **SMALL, head_dim=8, sliding_window=8),
    "gemma3": _of("Gemma3ForCausalLM", "Gemma3TextConfig", **SMALL, head_dim=8, sliding_window=8),
    "phi3": _of("Phi3ForCausalLM", "Phi3Config", **SMALL),
    "gpt2": _of("GPT2LMHeadModel", "GPT2Config", vocab_size=96, n_positions=64, n_embd=32, n_layer=3, n_head=4,
                bos_token_id=1, eos_token_id=2, resid_pdrop=0.1),
    "gpt-neox": _of("GPTNeoXForCausalLM", "GPTNeoXConfig", **{**SMALL, "num_key_value_heads": 4}),
    "gptj": _of("GPTJForCausalLM", "GPTJConfig", vocab_size=96, n_positions=64, n_embd=32, n_layer=3, n_head=4, rotary_dim=4,
                bos_token_id=1, eos_token_id=2),
    "olmo2": _of("Olmo2ForCausalLM", "Olmo2Config", **SMALL),
    "olmoe": _of("OlmoeForCausalLM", "OlmoeConfig", **SMALL, num_experts=4, num_experts_per_tok=2),
    "qwen3-moe": _of("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **SMALL, **EXPERTS, head_dim=8),
    "mixtral": _of("MixtralForCausalLM", "MixtralConfig", **SMALL, num_local_experts=4, num_experts_per_tok=2),
    "deepseek-v3": _of("DeepseekV3ForCausalLM", "DeepseekV3Config", **{**SMALL, "num_key_value_heads": 4},
                       moe_intermediate_size=16, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=2,
                       topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4,
                       qk_nope_head_dim=8, v_head_dim=8),
    "gpt-oss": _of("GptOssForCausalLM", "GptOssConfig", **SMALL, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
                   sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "t5": _of("T5ForConditionalGeneration", "T5Config", vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2,
              num_heads=4, decoder_start_token_id=0, pad_token_id=0),
    "bert": _of("BertForMaskedLM", "BertConfig", vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=64),
}  # fmt: skip

VISION: dict[str, Callable[[], nn.Module]] = {
    "vit": _of("ViTForImageClassification", "ViTConfig", hidden_size=32, intermediate_size=48, num_hidden_layers=3,
               num_attention_heads=4, image_size=16, patch_size=4, num_labels=5),
    "hf-resnet": _of("ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2],
                     layer_type="basic", num_labels=5),
    "cifar-resnet": lambda: CifarResNet(2, (8, 16, 32)),
}  # fmt: skip

MASK = 4
"""What stands in the place of a token that a masked model is asked for."""
ALL = {**LANGUAGE, **VISION}
CAUSAL = {name: build for name, build in LANGUAGE.items() if name not in ("t5", "bert")}


def build(name: str, seed: int = 0) -> nn.Module:
    """The tiny model of that name with seeded random weights, fp32, in eval mode."""
    torch.manual_seed(seed)
    return ALL[name]().eval()


def inputs(name: str, batch: int = 2, seq: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded random input of the right sort for that model, labels included for language models."""
    generator = torch.Generator().manual_seed(seed)
    if name in VISION:
        size = 16 if name == "vit" else 32
        key = "x" if name == "cifar-resnet" else "pixel_values"
        return {key: torch.rand(batch, 3, size, size, generator=generator)}
    ids = torch.randint(3, 96, (batch, seq), generator=generator)
    seen = ids.clone()
    if name == "bert":  # a masked model is asked for what it does not see
        seen[:, 5::6] = MASK
    return {"input_ids": seen, "labels": ids}
