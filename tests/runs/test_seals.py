"""What other libraries write into a run is sealed, and `verify` reads everything."""

from pathlib import Path

import pytest
import torch

from keylayers.errors import BadInput
from keylayers.runs import Given, open_run
from keylayers.runs.seals import check_seal, damage, sealed_folder
from keylayers.runs.verification import verify
from keylayers.scores import save
from tests.scores.examples import network, noise


def flip(path: Path, place: int = -1) -> None:
    held = bytearray(path.read_bytes())
    held[place] ^= 1
    path.write_bytes(held)


def adapter(folder: Path) -> Path:
    with sealed_folder(folder) as place:
        (place / "inner").mkdir()
        (place / "weights").write_bytes(b"w" * 100)
        (place / "inner" / "config.json").write_text('{"r": 8}')
    return folder


def test_a_flipped_bit_and_a_missing_file_are_named(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    assert damage(folder) == {} and check_seal(folder) is None
    (folder / "README.md").write_text("added, and nobody's harm")
    assert damage(folder) == {}
    flip(folder / "weights", 7)
    (folder / "inner" / "config.json").unlink()
    assert list(damage(folder)) == ["inner/config.json", "weights"]
    with pytest.raises(BadInput, match=r"inner/config.json' is missing, and 1 more .* damaged; start over\."):
        check_seal(folder, "start over")
    (folder / "seal.json").unlink()  # the change is meant
    check_seal(folder, "start over")


def test_a_sealed_model_that_is_damaged_is_not_taken(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "tuned")
    (folder / "adapter_config.json").write_text("{}")
    assert Given((folder,)).contents({}).keys() == {f"{folder}/adapter_config.json", f"{folder}/weights"}
    flip(folder / "weights")
    with pytest.raises(BadInput, match=r"weights' does not match its sha256 in seal.json beside it"):
        Given((folder,)).contents({})


def run_with_everything(folder: Path) -> Path:
    with open_run(folder, "score", {"a": 1}) as run:
        run.part("loss", lambda: {"loss": 1.25})
        run.tensor_part("deltas", lambda: {"a": torch.arange(8.0)})
        run.checkpoint("loop").save(1, {"a": torch.arange(4.0)})
        run.log("step", loss=1.25)
        adapter(folder / "stage1" / "adapter")
        save(noise(network(2), 0), folder / "random.json")
    (folder / "report.html").write_text("<html>")
    (folder / "notes.txt").write_text("somebody's")
    return folder


def test_verify_names_every_file_in_which_a_bit_was_flipped(tmp_path: Path) -> None:
    run = run_with_everything(tmp_path / "run")
    whole = verify(run)
    assert whole.damaged == () and sorted(path.name for path in whole.unsealed) == ["notes.txt", "report.html"]
    assert len(whole.whole) == 9
    for file in whole.whole:
        held = file.read_bytes()
        for place in (len(held) // 3, len(held) // 2, -3):
            flip(file, place)
            assert [path for path, _ in verify(run).damaged if path.parent in (file.parent, *file.parents)], file
            file.write_bytes(held)
    assert verify(run).damaged == ()


def test_a_run_file_without_its_digest_is_damaged_and_old_scores_are_not(tmp_path: Path) -> None:
    run = run_with_everything(tmp_path / "run")
    part, scores = run / "parts" / "loss.json", run / "random.json"
    part.write_text(part.read_text().replace("sha256", "sha255"))
    scores.write_text("\n".join(line for line in scores.read_text().splitlines() if not line.startswith('  "sha256"')))
    found = verify(run)
    assert [path for path, _ in found.damaged] == [part] and scores in found.unsealed
    assert verify(scores).unsealed == (scores,) and verify(run / "stage1" / "adapter" / "weights").damaged == ()
    with pytest.raises(BadInput, match="nothing is at"):
        verify(tmp_path / "absent")
