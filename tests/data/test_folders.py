import json
from pathlib import Path

import pytest

from keylayers.data.formats import load_records
from keylayers.data.records import Record
from keylayers.errors import BadInput, UnknownName


def texts(path: Path, **settings: str) -> list[str | None]:
    return [record.text for record in load_records(path, **settings)]  # type: ignore[arg-type]


def shard(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_shards_are_read_in_order_and_a_split_by_its_name(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train-00001-of-00002.jsonl", "b")
    shard(tmp_path / "data" / "train-00000-of-00002.jsonl", "a")
    shard(tmp_path / "data" / "test-00000-of-00001.jsonl", "c")
    (tmp_path / "README.md").touch()
    assert texts(tmp_path) == ["a", "b"] and texts(tmp_path, split="test") == ["c"]
    assert load_records(tmp_path).split == "train"
    with pytest.raises(UnknownName, match="split"):
        load_records(tmp_path, split="trian")
    shard(tmp_path / "plain" / "one.jsonl", "x")
    shard(tmp_path / "plain" / "two.jsonl", "y")
    assert texts(tmp_path / "plain") == ["x", "y"] and load_records(tmp_path / "plain").split is None


def test_what_datasets_saves_to_disk(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    table.save_to_disk(tmp_path / "saved", num_shards=2)
    assert texts(tmp_path / "saved") == ["a", "b", "c"]
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both") == ["a", "b", "c"] and texts(tmp_path / "both", split="test") == ["b"]
    assert next(iter(load_records(next((tmp_path / "saved").glob("*.arrow"))))) == Record(text="a")


def test_folders_that_say_nothing_clear_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no data file"):
        load_records(tmp_path)
    shard(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.csv").write_text("text\nb\n")
    with pytest.raises(BadInput, match=r"several kinds .*\.csv, \.jsonl"):
        load_records(tmp_path)
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1 but no more")
    with pytest.raises(BadInput, match=r"no.* sound Arrow file"):
        load_records(tmp_path / "broken.arrow")
