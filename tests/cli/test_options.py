"""Settings from a YAML file, which flags override, and KEY=VALUE options."""

import pytest

from keylayers.cli import runs
from keylayers.cli.options import pairs
from keylayers.errors import BadInput


@pytest.fixture
def seen(monkeypatch):
    """What a command would run with, instead of running it."""
    found = {}

    def note(names, options):
        found.update(options, criteria=names)

    monkeypatch.setattr(runs, "run_score", note)
    monkeypatch.setattr(runs, "run_tune", lambda options: found.update(options))
    return found


def test_a_file_sets_what_flags_do_not(cli, seen, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "model: some/model\nsteps: 7\nmax-length: 99\nset: {points: 4, initial: 0.5}\ncolumn: [prompt=q]\nfresh: true\n"
        "tuned: null\n"
    )
    assert cli("score", "random", "--config", "c.yaml", "--steps", 8).code == 0
    assert seen["model"] == "some/model" and seen["steps"] == 8 and seen["max_length"] == 99 and seen["fresh"] is True
    assert seen["settings"] == ["points=4", "initial=0.5"] and seen["columns"] == ["prompt=q"] and seen["tuned"] is None
    assert seen["lr"] == 3e-3  # neither said anything


def test_a_single_value_serves_where_several_may_be_given(cli, seen, tmp_path):
    (tmp_path / "c.yaml").write_text("model: some/model\ndata: some.jsonl\nlr: 0.01\nagainst: last:3\n")
    assert cli("tune", "--config", "c.yaml").code == 0
    assert seen["lr"] == [0.01] and seen["against"] == ["last:3"]
    assert cli("tune", "--config", "c.yaml", "--lr", "0.1", "--lr", "0.2").code == 0
    assert seen["lr"] == [0.1, 0.2]


def test_the_criteria_may_come_from_the_file(cli, seen, tmp_path):
    (tmp_path / "c.yaml").write_text("model: some/model\ncriteria: [random, delta_norm]\n")
    assert cli("score", "--config", "c.yaml").code == 0
    assert seen["criteria"] == ["random", "delta_norm"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: 3\n", "unknown setting in c.yaml 'stepz'; did you mean 'steps'"),
        ("settings: 3\n", "unknown setting in c.yaml 'settings'; did you mean 'set'"),
        ("steps: many\n", "Invalid value for '--steps'"),
        ("steps: [1, 2\n", "--config c.yaml is no YAML: while parsing a flow sequence"),
        ("- steps\n", "must hold settings as `name: value` lines"),
        ("", "must hold settings as `name: value` lines"),
        ("config: other.yaml\n", "unknown setting in c.yaml 'config'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(cli, seen, tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    result = cli("score", "random", "--model", "m", "--config", "c.yaml")
    assert result.code == 2 and said in result.err and "Traceback" not in result.err
    assert not seen


def test_a_file_that_is_not_there_or_no_text_says_so(cli, tmp_path):
    assert "nowhere.yaml cannot be read (No such file" in cli("score", "random", "--config", "nowhere.yaml").err
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is no YAML" in cli("score", "random", "--config", "c.yaml").err


def test_pairs_keep_texts_as_they_are():
    assert pairs(["prompt=yes", "completion=a=b", "x="], "--column") == {"prompt": "yes", "completion": "a=b", "x": ""}
    assert pairs(None, "--set") == {}


@pytest.mark.parametrize(
    ("items", "said"), [(["points"], "'points': expected KEY=VALUE"), (["a=1", "a=2"], r"gives 'a' twice \(1 and 2\)")]
)
def test_pairs_that_are_none_or_double_are_refused(items, said):
    with pytest.raises(BadInput, match=f"--set .*{said}"):
        pairs(items, "--set")
