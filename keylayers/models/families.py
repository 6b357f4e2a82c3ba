"""Families of language models: what a network sees when it predicts a token, told from its class and configuration."""

from typing import Any, Literal

from torch import nn

from keylayers.layers.structure import inner_module, unwrap

Family = Literal["causal", "encoder-decoder", "masked", "bidirectional"]
"""What predicts a token: all before it; the prompt in an encoder and what is written so far in a decoder; all that is
not masked; all, the token itself included, so that there is nothing to predict."""

_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_EVERYWHERE = ("XLNetLMHeadModel", "XLMWithLMHeadModel", "FlaubertWithLMHeadModel")
"""Language heads over attention to all places, whose configurations do not say so."""


def family_of(model: nn.Module) -> Family:
    """The family of a network; `causal` for one that says nothing of itself."""
    root = inner_module(unwrap(model))
    config, name = getattr(root, "config", None), type(root).__name__
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    if name.endswith("ForMaskedLM"):
        return "masked"
    # BERT and its kin have the field in the class of their configuration, as GPT-NeoX has, whose attention is causal
    encodes = hasattr(type(config), "is_decoder") and not getattr(config, "is_decoder", True)
    if encodes and any(getattr(module, "is_causal", None) is True for module in root.modules()):
        encodes = False
    if encodes or name in _EVERYWHERE or getattr(_text(config), "use_bidirectional_attention", False) is True:
        return "bidirectional"
    return "causal"


def has_language_head(model: nn.Module) -> bool:
    """Whether a network of transformers predicts tokens; networks that do not say count as if they did."""
    root: Any = inner_module(unwrap(model))
    if not hasattr(root, "get_output_embeddings"):
        return True
    return root.get_output_embeddings() is not None


def predicts_tokens(model: nn.Module) -> bool:
    """Whether there are tokens that a network predicts without seeing them, so that it has a loss on text."""
    return has_language_head(model) and family_of(model) != "bidirectional"


def context_of(model: nn.Module) -> int | None:
    """Longest sequence in tokens; None where the network does not say.

    Tables of positions with a place for padding (RoBERTa's) count from behind it, so that they hold fewer positions
    than rows.
    """
    root = inner_module(unwrap(model))
    config = _text(getattr(root, "config", None))
    stated = (getattr(config, name, None) for name in _LIMITS)
    limit = next((value for value in stated if isinstance(value, int) and value > 0), None)
    if limit is None:
        return None
    taken = [
        module.padding_idx + 1
        for name, module in root.named_modules()
        if isinstance(module, nn.Embedding)
        and "position" in name.rpartition(".")[2]
        and module.padding_idx is not None
        and module.num_embeddings == limit
    ]
    return limit - max(taken, default=0)


def vocabulary_of(model: nn.Module) -> int | None:
    """Rows of the table of token embeddings; None where there is none."""
    root: Any = inner_module(unwrap(model))
    try:
        return int(root.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return None


def _text(config: Any) -> Any:
    """The part of a configuration that is about text, in a model that also takes images or sound."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config
