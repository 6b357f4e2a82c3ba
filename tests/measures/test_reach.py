"""Which layers a loss depends on: towers that get no input, experts without tokens, results that nobody uses."""

import pytest
import torch
import transformers as hf
from torch import nn

from keylayers.layers.naming import named_layers
from keylayers.measures.reach import reached
from tests.layers.helpers import full_state, same_state
from tests.tiny_models import CAUSAL, build, inputs


@pytest.mark.parametrize("name", ["llama", "olmoe", "gpt2"])
def test_text_reaches_every_layer_of_a_language_model_which_stays_as_it_was(name):
    model = build(name)
    layers, before = named_layers(model), full_state(model)
    drawn = torch.get_rng_state()
    assert reached(model, layers, [inputs(name)]) == layers and name in CAUSAL
    assert same_state(before, full_state(model)) and torch.equal(drawn, torch.get_rng_state())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_text_reaches_no_vision_tower():
    text = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = hf.Gemma3ForConditionalGeneration(config).eval()
    layers = named_layers(model)
    ids = torch.randint(3, 30, (2, 6))
    near = reached(model, layers, [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}])
    assert {layer.name for layer in layers} - {layer.name for layer in near} == {
        layer.name for layer in layers if "vision" in layer.name
    }
    assert any("vision" in layer.name for layer in layers) and near


class Sparse(nn.Module):
    """Each input goes to the expert it names; a head that nobody reads is computed beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unread = nn.Linear(4, 4), nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        hidden = self.first(x)
        self.unread(hidden)
        return self.experts[expert](hidden)


def loss(model, batch):
    return model(batch["x"], batch["expert"]).sum(), 1


def test_an_expert_waits_for_the_batch_that_names_it_and_what_nobody_reads_is_not_reached():
    model = Sparse().requires_grad_(False)
    layers = named_layers(model)
    batches = [{"x": torch.ones(1, 4), "expert": expert} for expert in (0, 2, 0)]
    assert [layer.name for layer in reached(model, layers, batches, loss)] == ["first", "experts.0", "experts.2"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_looking_ends_where_all_is_reached():
    seen = []

    def batches():
        for expert in (0, 1, 2, 0, 1):
            seen.append(expert)
            yield {"x": torch.ones(1, 4), "expert": expert}

    model = Sparse()
    layers = [layer for layer in named_layers(model) if layer.name != "unread"]
    assert reached(model, layers, batches(), loss) == tuple(layers) and seen == [0, 1, 2]
