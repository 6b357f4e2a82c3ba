import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import keylayers.world
from keylayers.data.sources import source_kind, source_rows
from keylayers.errors import BadInput, UnknownName


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, split: str) -> list[dict[str, str]]:
        return [{"prompt": f"{name} {split} {i}?", "completion": str(i)} for i in range(3)]

    fake = SimpleNamespace(names=lambda: ("facts", "chains"), load=load)
    monkeypatch.setattr(keylayers.world, "datasets", fake, raising=False)
    monkeypatch.setitem(sys.modules, "keylayers.world.datasets", fake)  # type: ignore[arg-type]


def test_kinds_are_told_by_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").touch()
    spelled = {
        "bundled:facts": "bundled",
        "openai/gsm8k": "hub",
        "openai/gsm8k:main": "hub",
        "data/mine": "file",
        "data/mine.jsonl": "file",
        "./a/b": "file",
        "/a/b": "file",
        "gsm8k": "file",
        "a.json": "file",
    }
    assert {source: source_kind(source) for source in spelled} == spelled


def test_bundled_rows_carry_name_split_and_index(world: None) -> None:
    rows = list(source_rows("bundled:facts", "test"))
    assert rows[1] == ("bundled:facts/test[1]", {"prompt": "facts test 1?", "completion": "1"})
    assert next(iter(source_rows("bundled:facts")))[0] == "bundled:facts/train[0]"


def test_unknown_bundled_name_offers_the_nearest(world: None) -> None:
    with pytest.raises(UnknownName, match="did you mean 'facts'"):
        list(source_rows("bundled:fact"))


def test_hub_rows_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = list[Any]()

    def load_dataset(name: str, configuration: str | None, split: str) -> list[dict[str, str]]:
        asked.append((name, configuration, split))
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(source_rows("openai/gsm8k:main")) == [("openai/gsm8k:main/train[0]", {"text": "x"})]
    assert list(source_rows("a/b", "test")) == [("a/b/test[0]", {"text": "x"})]
    assert asked == [("openai/gsm8k", "main", "train"), ("a/b", None, "test")]


def test_offline_hub_says_so_and_what_to_do() -> None:
    with pytest.raises(BadInput, match=r"'no-such-owner/nothing'.*could not be had from the hub: .*bundled:NAME"):
        list(source_rows("no-such-owner/nothing"))


def test_a_file_has_no_splits() -> None:
    with pytest.raises(BadInput, match="load_splits"):
        source_rows("a.json", "test")
