import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import keylayers.world
from keylayers.data.records import Record, Records, Turn
from keylayers.data.splits import SPLITS, Splits, assert_disjoint, load_splits, pooled, split
from keylayers.errors import BadInput, UnknownName


def some(prompts: list[str]) -> Records:
    made = [Record((Turn("user", p), Turn("assistant", f"a{i}")), origin=str(i)) for i, p in enumerate(prompts)]
    return Records(tuple(made), "here")


def parts(splits: Splits) -> list[Records]:
    return [getattr(splits, name) for name in SPLITS]


def test_shares_hold_within_chance() -> None:
    sizes = [len(part) for part in parts(split(some([f"question {i}" for i in range(4000)])))]
    for size, share in zip(sizes, (0.7, 0.15, 0.15), strict=True):
        assert abs(size - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
    assert sum(sizes) == 4000


@given(seed=st.integers(0, 9), repeats=st.integers(1, 3), data=st.data())
def test_duplicates_never_straddle_and_nothing_is_lost(seed: int, repeats: int, data: Any) -> None:
    prompts = [variant for i in range(60) for variant in [f"What is {i}?", f"what  IS {i}?"][:repeats]]
    shuffled = data.draw(st.permutations(prompts))
    splits = split(some(shuffled), seed=seed)
    assert_disjoint(*parts(splits))
    assert Counter(r.prompt for part in parts(splits) for r in part) == Counter(prompts)


def test_membership_and_order_do_not_depend_on_the_order_of_the_file() -> None:
    records = some([f"q{i % 150}" for i in range(200)])
    mixed = list(records.records)
    random.Random(1).shuffle(mixed)
    again = split(Records(tuple(mixed), "there"))
    assert [p.records for p in parts(split(records))] == [p.records for p in parts(again)]
    assert split(records).train.sha256 == again.train.sha256


def test_a_prompt_keeps_its_part_when_the_file_grows_and_changes_it_with_the_seed() -> None:
    prompts = [f"q{i}" for i in range(400)]
    small, large = split(some(prompts[:200])), split(some(prompts))
    for one, other in zip(parts(small), parts(large), strict=True):
        assert {r.key for r in one} == {r.key for r in other} & set(prompts[:200])
    assert {r.key for r in split(some(prompts), seed=1).test} != {r.key for r in large.test}


def test_parts_know_their_name() -> None:
    splits = split(some([f"q{i}" for i in range(50)]))
    assert [part.split for part in parts(splits)] == list(SPLITS)
    assert splits.train.provenance["split"] == "train"


def test_a_share_of_nothing_leaves_its_part_empty() -> None:
    splits = split(some(["a", "b", "c"]), shares=(1.0, 0.0, 0.0))
    assert [len(part) for part in parts(splits)] == [3, 0, 0]


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0.0, 0.0, 0.0)])
def test_impossible_shares(shares: tuple[float, float, float]) -> None:
    with pytest.raises(BadInput, match="sum to 1"):
        split(some(["a"]), shares=shares)


def test_too_few_records_for_a_part() -> None:
    with pytest.raises(BadInput, match=r"no record fell into the \w+ split"):
        split(some(["a"]))


def test_overlap_is_named() -> None:
    with pytest.raises(BadInput, match=r"1 and 0 \('two'\)"):
        assert_disjoint(some(["one", "two"]), some(["TWO "]))


def test_files_are_split_and_capped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(300)))
    whole, ten, some_train = load_splits(path), load_splits(path, limit=10), load_splits(path, limit={"train": 20})
    assert [len(part) for part in parts(ten)] == [10, 10, 10]
    assert len(some_train.train) == 20 and len(some_train.test) == len(whole.test)
    assert set(ten.train) < set(some_train.train) < set(whole.train)
    assert load_splits(path, limit=10).train.sha256 == ten.train.sha256


def test_limits_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(90)))
    with pytest.raises(UnknownName, match="split 'tests'; did you mean 'test'"):
        load_splits(path, limit={"tests": 1})
    with pytest.raises(BadInput, match="limit=0"):
        load_splits(path, limit=0)


@pytest.mark.parametrize("leak", [False, True])
def test_bundled_sets_bring_their_own_parts(monkeypatch: pytest.MonkeyPatch, leak: bool) -> None:
    def load(name: str, split: str) -> list[dict[str, str]]:
        return [{"prompt": f"{i} {'' if leak else split}", "completion": split} for i in range(5)]

    fake = SimpleNamespace(names=lambda: ("facts",), load=load)
    monkeypatch.setattr(keylayers.world, "datasets", fake, raising=False)
    monkeypatch.setitem(sys.modules, "keylayers.world.datasets", fake)  # type: ignore[arg-type]
    if leak:
        with pytest.raises(BadInput, match="bundled:facts/train"):
            load_splits("bundled:facts")
    else:
        splits = load_splits("bundled:facts", limit=3)
        assert [[r.completion for r in part] for part in parts(splits)] == [[name] * 3 for name in SPLITS]


def talk(place: int) -> dict[str, object]:
    spoken = ("user", "Hello"), ("assistant", "Hi."), ("user", f"q{place}"), ("assistant", "a")
    return {"messages": [{"role": role, "content": content} for role, content in spoken]}


def test_conversations_that_all_open_alike_are_parted_by_all_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(talk(place)) for place in range(60)))
    splits = load_splits(path)
    assert all(map(len, parts(splits))) and sum(map(len, parts(splits))) == 60
    assert {part.parted_by for part in parts(splits)} == {"whole_key"}
    assert_disjoint(*parts(splits))
    path.write_text("\n".join([json.dumps(talk(1))] * 30))
    with pytest.raises(BadInput, match=r"its 30 records have 1 different prompt, and records of one prompt stay"):
        load_splits(path)


def test_a_pool_takes_calibration_records_first_and_all_of_a_few(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) for i in range(40)))
    whole, few = pooled(path, most=99), pooled(path, most=3)
    assert len(whole.calibration) == 40 and whole.calibration.split == "calibration, train, test"
    assert set(few.calibration) < set(load_splits(path).calibration) and few.calibration.split == "calibration"
    path.write_text(json.dumps({"prompt": "q", "completion": "a"}))
    assert len(pooled(path, most=9).calibration) == 1 and not len(pooled(path, most=9).test)
