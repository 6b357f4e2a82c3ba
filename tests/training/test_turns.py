"""Layers that train by turns: only the selected move in each turn, and every turn selects anew."""

import pytest
import torch

from keylayers.errors import BadInput
from keylayers.layers import named_layers
from keylayers.scores import Selection
from keylayers.training.adapters import LoraSettings, adapted_layers, attach_lora
from keylayers.training.trainer import TrainSettings, train
from keylayers.training.turns import by_turns
from tests.tiny_models import build
from tests.training.small import examples

SETTINGS = TrainSettings(steps=6, batch_size=4, learning_rate=1e-2, warmup=0.0, schedule="constant", save_every=10**6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_only_the_layers_of_a_turn_move_in_it(name):
    model = build(name)
    layers = named_layers(model)
    adapted = attach_lora(model, layers, LoraSettings(rank=2), seed=0)
    turns, seen = [layers[:2], layers[2:5], layers[:1]], []
    hook = by_turns(adapted, lambda turn: Selection.of(layers, names=[one.name for one in turns[turn]]), every=2)
    up = {key: one.lora_B["default"].weight for key, one in adapted_layers(adapted).items()}

    def before(step):
        seen.append({key: value.detach().clone() for key, value in up.items()})
        hook(step)

    train(adapted, examples(), SETTINGS, before_step=before)
    seen.append({key: value.detach().clone() for key, value in up.items()})
    for step in range(6):
        moved = {key for key in up if not torch.equal(seen[step][key], seen[step + 1][key])}
        assert moved == {one.name for one in turns[step // 2]}


def test_layers_without_adapters_and_empty_turns_are_refused():
    model = build("llama")
    layers = named_layers(model)
    adapted = attach_lora(model, layers[:3], LoraSettings(rank=2), seed=0)
    hook = by_turns(adapted, lambda turn: Selection.of(layers, names=[layers[3].name]), every=1)
    with pytest.raises(BadInput, match="1 layers of a turn carry no adapter"):
        train(adapted, examples(), SETTINGS, before_step=hook)
    with pytest.raises(BadInput, match="a turn of 0 steps"):
        by_turns(adapted, lambda turn: Selection.of(layers, names=[]), every=0)
