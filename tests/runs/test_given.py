"""A run goes on only with what it was given: models, adapters and data by content, hub ids by commit."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

from keylayers.errors import BadInput
from keylayers.runs import Given, open_run, read_run
from keylayers.studies import real_data


def opened(folder: Path, given: Given) -> None:
    with open_run(folder, "score", {}, given=given) as run:
        run.part("loss", lambda: {"loss": 1.0})


def model(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"config.json": "{}", "a.safetensors": "aa", "tokenizer.json": "t", **files}.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: (m / "a.safetensors").write_text("ab"), "a.safetensors: its content is not what it was"),
        (lambda m: (m / "tokenizer.json").write_text("u"), "tokenizer.json: its content is not what it was"),
        (lambda m: (m / "b.safetensors").write_text("b"), "b.safetensors: was not there when the run began"),
        (lambda m: (m / "tokenizer.json").unlink(), "tokenizer.json: is no longer there"),
    ],
)
def test_what_changed_in_a_model_folder_is_named(change, said, tmp_path: Path) -> None:
    given = Given((model(tmp_path / "m"),))
    opened(tmp_path / "run", given)
    change(tmp_path / "m")
    with pytest.raises(BadInput, match=f"m/{said}"):
        opened(tmp_path / "run", given)
    with open_run(tmp_path / "run", "score", {}, given=given, fresh=True) as run:
        assert not run.has_part("loss")


def test_the_same_files_moved_back_or_copied_are_the_same(tmp_path: Path) -> None:
    given = Given((model(tmp_path / "m"),), (model(tmp_path / "data"),))
    opened(tmp_path / "run", given)
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    shutil.rmtree(tmp_path / "m")
    (tmp_path / "m").symlink_to(tmp_path / "copy")
    os.utime(tmp_path / "data" / "a.safetensors", (5, 5))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    opened(tmp_path / "elsewhere", given)
    assert len(read_run(tmp_path / "elsewhere")["sessions"]) == 2


def test_a_hub_id_is_its_commit_and_one_that_cannot_be_told_is_no_difference(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ref = tmp_path / "cache" / "models--some--model" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("abc")
    given = Given(("some/model",), ("some/data",))
    opened(tmp_path / "run", given)
    assert read_run(tmp_path / "run")["settings"]["given"] == {"some/model": "abc", "some/data": ""}
    ref.write_text("def")
    with pytest.raises(BadInput, match="some/model: its content is not what it was"):
        opened(tmp_path / "run", given)
    ref.unlink()
    opened(tmp_path / "run", given)
    ref.write_text("def")  # told again, it is held against the last that was known
    with pytest.raises(BadInput, match="some/model: its content is not what it was"):
        opened(tmp_path / "run", given)


def test_the_code_of_a_factory_of_ones_own_is_content(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("def net(): ...")
    opened(tmp_path / "run", Given(("nets:net", "keylayers.models.digits:digits_resnet", "bundled:llama")))
    assert list(read_run(tmp_path / "run")["settings"]["given"]) == ["nets.py"]
    (tmp_path / "nets.py").write_text("def net(): return 1")
    with pytest.raises(BadInput, match=r"nets\.py: its content"):
        opened(tmp_path / "run", Given(("nets:net",)))


def test_a_run_of_before_contents_were_recorded_goes_on_and_says_so(tmp_path: Path, capsys) -> None:
    with open_run(tmp_path / "run", "score", {}) as run:
        run.part("loss", lambda: {"loss": 1.0})
    opened(tmp_path / "run", Given((model(tmp_path / "m"),)))
    assert "began before contents were recorded" in capsys.readouterr().err
    assert "given" in read_run(tmp_path / "run")["settings"]


@dataclass(frozen=True)
class Asked:
    tasks: tuple[dict[str, str], ...]
    scale: str = "small"


def test_a_study_is_given_what_it_names_below_the_folders_of_this_machine(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(real_data.MODELS, str(tmp_path / "models"))
    monkeypatch.setenv(real_data.DATA, str(tmp_path / "data"))
    net, data = model(tmp_path / "models" / "net"), tmp_path / "data" / "x.jsonl"
    (tmp_path / "data").mkdir()
    data.write_text("{}")
    given = real_data.given_of(Asked(({"model": str(net), "data": str(data), "other": f"{data}.gz"},)))
    assert given == Given(data=("$KEYLAYERS_MODELS/net", "$KEYLAYERS_DATA/x.jsonl"))
    found = given.contents({})
    assert len(found) == 4 and all(name.startswith("$KEYLAYERS_") for name in found)
    monkeypatch.delenv(real_data.DATA)
    assert real_data.given_of(Asked(({"data": str(data)},))) == Given()
