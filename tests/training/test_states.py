"""Saved states: exactly what training can change, sealed, and refused when anything in them is wrong."""

import pytest
import torch
from torch import nn

from keylayers.errors import BadInput
from keylayers.training.states import changing_tensors, forget, load_tensors, newest_whole, save_tensors, seal_state


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model.register_buffer("passing", torch.zeros(1), persistent=False)
    return model


def test_what_can_change_is_the_trainable_and_the_lasting_buffers():
    model = net()
    model[0].requires_grad_(False)
    assert set(changing_tensors(model)) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias"
    }  # fmt: skip


def test_tensors_come_back_bit_for_bit_in_their_own_types(tmp_path):
    model, other = net().to(torch.bfloat16), net().to(torch.bfloat16)
    with torch.no_grad():
        model[2].weight.mul_(1.7)
        model[1].num_batches_tracked += 5
    save_tensors(model, tmp_path)
    load_tensors(other, tmp_path)
    assert all(torch.equal(value, changing_tensors(other)[name]) for name, value in changing_tensors(model).items())


def test_a_state_of_other_tensors_is_refused(tmp_path):
    model = net()
    save_tensors(model, tmp_path)
    model[0].weight.requires_grad_(False)
    with pytest.raises(BadInput, match=r"1 differ, first 0\.weight"):
        load_tensors(model, tmp_path)


def state(folder, step: int):
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "a").write_bytes(b"a" * 100)
    (place / "b").write_bytes(b"b" * 100)
    seal_state(place)
    return place


def test_the_newest_whole_state_wins_by_number_not_by_name(tmp_path):
    assert newest_whole(tmp_path) is None
    for step in (2, 9, 10):
        last = state(tmp_path, step)
    assert newest_whole(tmp_path) == last and last.name == "checkpoint-10"


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "unsealed", "seal truncated"])
def test_a_harmed_state_is_dropped_with_a_note(harm, tmp_path, capsys):
    earlier, later = state(tmp_path, 1), state(tmp_path, 2)
    if harm == "truncated":
        (later / "a").write_bytes(b"a" * 50)
    elif harm == "flipped":
        (later / "a").write_bytes(b"a" * 99 + b"b")
    elif harm == "missing":
        (later / "b").unlink()
    elif harm == "unsealed":
        (later / "seal.json").unlink()
    else:
        (later / "seal.json").write_text((later / "seal.json").read_text()[:-20])
    assert newest_whole(tmp_path) == earlier
    assert not later.exists()
    assert f"leaving out the saved state {later}" in capsys.readouterr().err


def test_forgetting_touches_states_alone(tmp_path):
    state(tmp_path, 1)
    (tmp_path / "checkpoint-of-mine").mkdir()
    (tmp_path / "adapter").mkdir()
    forget(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "checkpoint-of-mine"]
