"""`keylayers verify`: every damaged file by name, and a status that scripts can use."""

from pathlib import Path

from keylayers.runs import open_run
from keylayers.runs.seals import sealed_folder


def test_the_command_tells_by_its_status(cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with open_run(run, "score", {}) as opened:
        opened.part("loss", lambda: {"loss": 1.25})
        with sealed_folder(run / "tuned") as folder:
            (folder / "weights").write_bytes(b"w" * 9)
    (run / "notes.txt").write_text("somebody's")
    done = cli("verify", str(run))
    assert done.code == 0 and "5 files are what was written, 0 are damaged" in done.out and "notes.txt" in done.out
    (run / "tuned" / "weights").write_bytes(b"w" * 8 + b"v")
    done = cli("verify", str(run / "parts" / "loss.json"), str(run))
    assert done.code == 1 and f"damaged: {run}/tuned/weights does not match its sha256 in seal.json" in done.out
    assert cli("verify", "absent").code == 2
