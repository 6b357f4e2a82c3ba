"""The lens against Hugging Face's own hidden states, norm, head and soft cap; entropies against scipy."""

import importlib

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from keylayers.criteria.logit_lens_entropy import LogitLensEntropy, entropies, score_logit_lens_entropy
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.layers.readout import readout_of
from tests import tiny_models
from tests.criteria.test_observing import text

NORMS = {
    "llama": "model.norm",
    "gemma2": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt-neox": "gpt_neox.final_layer_norm",
}


def by_hand(model: nn.Module, norm: str, cap: float | None, position: str = "all") -> np.ndarray:
    """Entropies before the first block and after every one, by the library's own hidden states."""
    found = []
    for batch in text(3):
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        held: list[torch.Tensor] = []
        last = model.get_submodule(norm).register_forward_pre_hook(lambda module, args, held=held: held.append(args[0]))
        hidden = [*model(**given, output_hidden_states=True).hidden_states[:-1], held[0]]  # the last there is normed
        last.remove()
        mask = batch["attention_mask"].bool()
        if position == "last":
            mask = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        rows = []
        for one in hidden:
            logits = model.get_output_embeddings()(model.get_submodule(norm)(one[mask]))
            logits = logits if cap is None else torch.tanh(logits / cap) * cap
            rows.append(entropy(logits.double().softmax(-1).numpy(), axis=-1))
        found.append(np.array(rows))
    return np.concatenate(found, axis=1).mean(1)


@pytest.mark.parametrize("position", ["all", "last"])
@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_drops_equal_those_of_the_librarys_hidden_states(name: str, position: str) -> None:
    model = tiny_models.build(name)
    if name == "gemma2":
        model.config.final_logit_softcapping = 0.5  # as small as the logits of a random model, so that it bends
    layers = named_layers(model, "block")
    scores = score_logit_lens_entropy(Evidence(model=model, data=text(3)), layers, LogitLensEntropy(position=position))
    expected = by_hand(model, NORMS[name], 0.5 if name == "gemma2" else None, position)
    np.testing.assert_allclose(scores.values, expected[:-1] - expected[1:], atol=2e-5)
    np.testing.assert_allclose(scores.provenance.settings["entropies"], expected[:-1], atol=2e-5)
    if name == "gemma2":
        uncapped = by_hand(model, NORMS[name], None, position)
        assert np.abs(uncapped[:-1] - uncapped[1:] - scores.values).max() > 1e-3


def test_a_block_that_does_nothing_scores_zero_and_the_scores_add_up() -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    layers = named_layers(model, "block")
    scores = score_logit_lens_entropy(Evidence(model=model, data=text(4)), layers)
    assert scores.values[1] == 0 and (scores.values[[0, 2]] != 0).all()
    with torch.no_grad():
        logits = [model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits for batch in text(4)]
    final = torch.cat([entropies(one[b["attention_mask"].bool()]) for one, b in zip(logits, text(4), strict=True)])
    assert scores.provenance.settings["entropies"][0] - scores.values.sum() == pytest.approx(
        float(final.mean()), abs=1e-5
    )


def test_a_wide_vocabulary_is_read_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("keylayers.criteria.logit_lens_entropy")
    model = tiny_models.build("llama")
    layers = named_layers(model, "block")
    evidence = Evidence(model=model, data=text(4))
    whole = module.score_logit_lens_entropy(evidence, layers)
    monkeypatch.setattr(module, "_LOGIT_ELEMENTS", 96 * 3)
    most = []
    model.lm_head.register_forward_hook(lambda module, args, output: most.append(len(output)))
    np.testing.assert_allclose(module.score_logit_lens_entropy(evidence, layers).values, whole.values, atol=1e-6)
    assert max(most[2:]) == 3  # after the record by which the readout is found, and its check


@pytest.mark.parametrize(
    ("name", "said"),
    [("t5", "one stack of blocks"), ("vit", "a prediction at every position"), ("hf-resnet", "at every position")],
)
def test_models_without_a_prediction_per_position_are_refused(name: str, said: str) -> None:
    from tests.criteria.examples import evidence_of

    evidence = evidence_of(name)
    with pytest.raises(BadInput, match=said):
        score_logit_lens_entropy(evidence, named_layers(evidence.model, "block"))


def test_a_model_that_does_something_else_after_its_blocks_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_models.build("llama")

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids).logits * 1.5

    model = Odd()
    with pytest.raises(BadInput, match="Odd does more after its blocks than its final norm, head"):
        readout_of(model, lambda: model(torch.arange(3, 9)[None]))
    with pytest.raises(BadInput, match="a mean over them is none"):
        evidence = Evidence(model=tiny_models.build("llama"), data=text(4))
        score_logit_lens_entropy(evidence, named_layers(evidence.model, "block"), LogitLensEntropy(position="mean"))


def test_scales_of_the_logits_are_read_from_the_configuration() -> None:
    import transformers as hf

    config = hf.CohereConfig(**tiny_models.SMALL, logit_scale=0.25)
    model = hf.CohereForCausalLM(config).eval()
    with torch.no_grad():
        assert readout_of(model, lambda: model(torch.arange(3, 9)[None]).logits).scale == 0.25
