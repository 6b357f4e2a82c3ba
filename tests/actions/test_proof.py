"""Digests that see every bit of every parameter and buffer, and the refusal of a stray change."""

import pytest
import torch
from torch import nn

from keylayers.actions.fingerprinting import changed_names, check_only_changed, digest_of, fingerprints
from keylayers.errors import KeylayersError
from keylayers.layers import named_layers
from keylayers.training.adapters import LoraSettings, attach_lora
from tests.tiny_models import ALL, build


@pytest.mark.parametrize("name", ALL)
def test_every_stored_tensor_has_a_digest_and_adapters_change_none(name):
    model = build(name)
    before = fingerprints(model)
    assert set(before) == set(model.state_dict())
    if name not in ("hf-resnet", "cifar-resnet"):
        assert fingerprints(attach_lora(model, named_layers(model), LoraSettings(rank=1), seed=0)) == before


def test_one_flipped_bit_of_a_parameter_or_a_buffer_is_seen():
    model = build("cifar-resnet")
    before = fingerprints(model)
    with torch.no_grad():
        model.layer1[0].conv1.weight.view(torch.int32)[0, 0, 0, 0] ^= 1
        model.bn1.num_batches_tracked += 1
        model.layer2[0].bn1.running_var[0] += 1e-3
    changed = changed_names(before, fingerprints(model))
    assert set(changed) == {"layer1.0.conv1.weight", "bn1.num_batches_tracked", "layer2.0.bn1.running_var"}


def test_a_digest_tells_shapes_types_and_signs_of_zero_apart():
    ones = torch.ones(2, 3)
    different = [ones, ones.T, ones.flatten(), ones.double(), ones.bfloat16(), torch.zeros(2, 3), -torch.zeros(2, 3)]
    assert len({digest_of(tensor) for tensor in different}) == len(different)
    assert digest_of(torch.ones(3, 2).T) == digest_of(ones)
    assert digest_of(torch.tensor(True)) != digest_of(torch.tensor(False))
    assert digest_of(torch.empty(0)) == digest_of(torch.empty(0))


def test_buffers_that_are_not_stored_do_not_count():
    model = nn.Linear(2, 2)
    model.register_buffer("passing", torch.zeros(1), persistent=False)
    assert set(fingerprints(model)) == {"weight", "bias"}


def test_a_stray_change_is_named():
    model = build("llama")
    before = fingerprints(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight += 1
        model.model.norm.weight += 1
    with pytest.raises(KeylayersError, match=r"1 tensors outside the selection, first model\.norm\.weight"):
        check_only_changed(before, fingerprints(model), ["model.layers.1.mlp.up_proj.weight"])
    allowed = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    assert check_only_changed(before, fingerprints(model), allowed) == len(before) - 2


def test_a_tensor_that_appeared_or_vanished_is_a_change():
    before = fingerprints(nn.Linear(2, 2))
    with pytest.raises(KeylayersError, match="bias"):
        check_only_changed(before, fingerprints(nn.Linear(2, 2, bias=False)), ["weight"])
