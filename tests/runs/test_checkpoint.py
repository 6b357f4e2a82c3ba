"""The newest whole state comes back; damage costs one state, not the run."""

from pathlib import Path

import pytest
import torch

from keylayers.errors import BadInput
from keylayers.runs import Checkpoint


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "loop").load() is None


def test_the_last_two_states_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    states = Checkpoint(tmp_path)
    for step in (8, 9, 10, 100):
        states.save(step, {"w": torch.full((2,), float(step))}, {"loss": 1 / step})
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["000000010", "000000100"]
    step, tensors, meta = states.load() or pytest.fail("nothing loaded")
    assert (step, tensors["w"].tolist(), meta) == (100, [100.0, 100.0], {"loss": 0.01})
    states.clear()
    assert states.load() is None


def test_a_damaged_newest_state_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = Checkpoint(tmp_path)
    for step in (1, 2):
        states.save(step, {"w": torch.full((64,), float(step))})
    newest = tmp_path / "000000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x01")
    step, tensors, _ = states.load() or pytest.fail("nothing loaded")
    assert step == 1 and bool((tensors["w"] == 1).all())
    assert "skipping a damaged checkpoint" in capsys.readouterr().err


def test_all_states_damaged_is_an_error(tmp_path: Path) -> None:
    states = Checkpoint(tmp_path)
    states.save(1, {"w": torch.ones(2)})
    (tmp_path / "000000001.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="damaged; delete it"):
        states.load()


def test_a_repeated_try_drops_the_states_of_the_abandoned_one(tmp_path: Path) -> None:
    states = Checkpoint(tmp_path)
    for step in (40, 50, 10):
        states.save(step, {"w": torch.tensor(float(step))})
    found = states.load()
    assert found is not None and found[0] == 10


def test_a_negative_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="step -1"):
        Checkpoint(tmp_path).save(-1, {})
