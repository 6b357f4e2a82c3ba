"""Score folders: saved, loaded, put on a simulated hub and taken back, from the hub's cache, and what goes wrong."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from keylayers.errors import BadInput, BadScores
from keylayers.scores import LayerScores, Provenance, hub, save
from keylayers.scores.card import is_our_card, model_card
from tests.scores.examples import FULL, network, noise, scored
from tests.scores.simulated_hub import simulated_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def full() -> LayerScores:
    layers = network(3)
    repeats = np.random.default_rng(0).normal(size=(3, len(layers)))
    return scored(layers, repeats.mean(axis=0), provenance=FULL, repeats=repeats)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache: Path, repo: str, scores: LayerScores | None) -> None:
    """Puts a repository into the cache as huggingface_hub lays it out: refs, blobs, snapshots of links to them."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    if scores is not None:
        (place / "blobs").mkdir()
        save(scores, place / "blobs" / "0f0f")
        (snapshot / hub.FILE).symlink_to("../../blobs/0f0f")


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, with these variables: huggingface_hub reads them once."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)


def test_a_folder_gives_back_the_same_scores(tmp_path):
    scores = full()
    scores.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [hub.CARD, hub.FILE]
    assert LayerScores.from_pretrained(tmp_path / "new" / "folder") == scores


def test_a_readme_of_somebody_else_is_kept_and_an_old_card_replaced(tmp_path):
    (tmp_path / hub.CARD).write_text("---\nlibrary_name: transformers\n---\nMy model, not keylayers.")
    full().save_pretrained(tmp_path)
    assert "My model" in (tmp_path / hub.CARD).read_text()
    (tmp_path / hub.CARD).write_text(model_card(noise(network(3))))
    full().save_pretrained(tmp_path)
    assert (tmp_path / hub.CARD).read_text() == model_card(full())


def test_the_card_ranks_the_layers_and_says_where_they_come_from():
    scores = full()
    card = model_card(scores, "user/repo")
    head = yaml.safe_load(card.split("---")[1])
    assert head == {
        "library_name": "keylayers",
        "tags": ["layer-importance", "layer-scores", "by_hand"],
        "base_model": "some/model",
    }
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")][2:]
    assert [row[1] for row in rows] == [layer.name.replace("_", r"\_") for layer in scores.ranking()[:10]]
    assert rows[0][4] == f"{scores.values.max():.4g}" and " to " in rows[0][5]
    for text in ('from_pretrained("user/repo")', "alpaca", "830", "seed: 3", "repeats: 3", "12.5"):
        assert text in card
    local = replace(FULL, model={"id": "runs/mine", "revision": None})
    assert "base_model" not in model_card(replace(scores, provenance=local))  # a path, though it looks like an id
    assert "Only the order" in model_card(replace(noise(network(2)), ordinal=True))
    assert "Nothing is recorded" in model_card(noise(network(2)))


def test_what_scores_say_is_no_markup_in_the_card():
    origin = Provenance(model={"id": "a\n---\n# head <script>alert(1)</script> | [x](javascript:y)"})
    named = replace(scored(network(2), np.arange(15.0), provenance=origin), criterion="x\n---\nlibrary_name: other")
    card = model_card(named)
    assert is_our_card(card) and "<script>" not in card.replace(r"\<script\>", "")
    assert len([line for line in card.split("---\n", 2)[2].splitlines() if line.startswith("# ")]) == 1
    assert yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))["tags"][2] == named.criterion


def test_scores_come_from_the_cache_of_the_hub_without_a_network(cache):
    scores = full()
    cached(cache, "user/repo", scores)
    assert LayerScores.from_pretrained("user/repo") == scores
    assert LayerScores.from_pretrained("user/repo", COMMIT) == scores
    assert hub.load_scores("user/repo") == hub.load_scores(f"user/repo@{COMMIT}") == scores


@pytest.mark.parametrize(
    ("place", "revision", "message"),
    [
        ("user/unknown", None, "cannot load 'user/unknown', which is no file or folder here: the hub is out of reach"),
        ("user/repo", "v2", "cannot load 'user/repo@v2', .* the hub is out of reach"),
        ("user/empty", None, "the hub is out of reach .* go online"),
        ("no such id", None, "no folder 'no such id', and it is no repository either: expected a folder or user/repo"),
    ],
)
def test_what_is_not_in_the_cache_is_said(cache, place, revision, message):
    cached(cache, "user/repo", full())
    cached(cache, "user/empty", None)
    with pytest.raises(BadInput, match=message):
        LayerScores.from_pretrained(place, revision)


def test_folders_have_no_revisions_and_may_hold_no_scores(tmp_path):
    with pytest.raises(BadInput, match=r"holds no layer_scores\.json and no scores as a scoring run"):
        LayerScores.from_pretrained(tmp_path)
    full().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is a folder on this machine, which has no revisions"):
        LayerScores.from_pretrained(tmp_path, "main")


def test_a_scoring_run_of_one_criterion_stands_for_its_scores_and_one_of_two_is_asked_about(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    save(full(), tmp_path / "path_integral.json")
    assert hub.load_scores(tmp_path) == full()
    save(full(), tmp_path / "random.json")
    with pytest.raises(
        BadInput, match=r"scores of 2 criteria; name one of them: .*path_integral\.json, .*random\.json"
    ):
        hub.load_scores(tmp_path)
    assert [path.name for path in hub.score_files(tmp_path)] == ["path_integral.json", "random.json"]


def test_any_place_that_holds_scores_can_be_named(tmp_path, cache, monkeypatch):
    mine, other = full(), noise(network(2))
    save(mine, tmp_path / "scores.json")
    assert hub.load_scores(tmp_path / "scores.json") == hub.load_scores(tmp_path) == mine  # a file; a run folder
    cached(cache, "user/repo", other)
    monkeypatch.chdir(tmp_path)
    assert hub.load_scores("user/repo") == other
    mine.save_pretrained("user/repo")
    assert hub.load_scores("user/repo") == mine  # what is here goes first
    for missing in ("nowhere.json", "folder/nowhere.json", "nowhere"):
        with pytest.raises(BadInput, match=f"{missing} cannot be read"):
            hub.load_scores(missing)
    (tmp_path / "other.json").write_text('{"format": "something"}')
    with pytest.raises(BadScores, match="keylayers/scores/1"):
        hub.load_scores("other.json")


def test_scores_travel_over_a_simulated_hub(tmp_path):
    """In a process of its own: huggingface_hub reads the hub's address when it is imported."""
    scores = full()
    save(scores, tmp_path / "mine.json")
    code = f"""
import sys
from keylayers.scores import LayerScores, load
from keylayers.scores.hub import load_scores
mine = load({str(tmp_path / "mine.json")!r})
print(mine.push_to_hub("user/repo", private=True))
assert LayerScores.from_pretrained("user/repo") == mine == load_scores("user/repo@main")
mine.push_to_hub("user/repo")  # again: the repository is there, and the card ours
mine.push_to_hub("user/model")  # one with a README of its own
assert "torch" not in sys.modules
for place, revision in [("user/nowhere", None), ("user/repo", "v9"), ("user/model-only", None)]:
    try:
        LayerScores.from_pretrained(place, revision)
    except Exception as problem:
        print(type(problem).__name__, problem)
"""
    with simulated_hub() as (address, repos, calls):
        repos["user/model"] = {"README.md": b"---\nlibrary_name: transformers\n---\n# Mine"}
        repos["user/model-only"] = {"config.json": b"{}"}
        done = run(code, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"), HF_TOKEN="may-write")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == f"{address}/user/repo/commit/{'a' * 40}"
    assert "private=private" in calls or "private=True" in calls
    assert repos["user/repo"][hub.CARD].decode() == model_card(scores, "user/repo")
    assert repos["user/model"].keys() == {hub.CARD, hub.FILE} and repos["user/model"][hub.CARD].endswith(b"# Mine")
    assert all(line.startswith("BadInput cannot load ") for line in said[1:])
    for line, text in zip(
        said[1:], ["has no such repository", "no such revision", "holds no layer_scores"], strict=True
    ):
        assert text in line


@pytest.mark.parametrize(("token", "reason"), [("wrong", "hf auth login"), ("may-write", "the hub is out of reach")])
def test_an_upload_that_is_not_allowed_or_finds_no_hub_says_so(tmp_path, token, reason):
    save(full(), tmp_path / "mine.json")
    code = f"""
from keylayers.errors import BadInput
from keylayers.scores import load
try:
    load({str(tmp_path / "mine.json")!r}).push_to_hub("user/repo")
except BadInput as problem:
    print(problem)
"""
    with simulated_hub() as (address, repos, _):
        place = address if token == "wrong" else "http://127.0.0.1:9"  # nobody listens there
        done = run(code, HF_ENDPOINT=place, HF_HOME=str(tmp_path / "home"), HF_TOKEN=token)
    assert "cannot upload to 'user/repo'" in done.stdout and reason in done.stdout, done.stdout + done.stderr
    assert not repos


def test_uploads_offline_and_to_impossible_names_are_refused(cache):
    with pytest.raises(BadInput, match="cannot upload to 'user/repo': the hub is out of reach"):
        full().push_to_hub("user/repo")
    with pytest.raises(BadInput, match="cannot upload to 'repo': expected user/repo"):
        full().push_to_hub("repo")


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be made"):
        full().save_pretrained(tmp_path / "file")
