"""Score files: exact round trips, one layer per line, atomic writes, and a clear refusal of everything else."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadInput, BadScores, KeylayersError, UnknownName
from keylayers.scores import LayerScores, load, save
from tests.scores.examples import FINITE, FULL, network, noise, score_sets, scored

LAYERS = network(2)


def full_scores() -> LayerScores:
    rng = np.random.default_rng(0)
    repeats = rng.normal(size=(3, 15)) * 1e-7
    groups = {"english": rng.normal(size=15), "zweite Sprache": rng.normal(size=15)}
    return scored(LAYERS, repeats.mean(axis=0), provenance=FULL, repeats=repeats, groups=groups)


def rewritten(path, change) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_everything_survives_a_round_trip(tmp_path):
    scores = full_scores()
    save(scores, tmp_path / "scores.json")
    assert load(tmp_path / "scores.json") == scores


@given(score_sets(elements=FINITE))
def test_round_trip_is_exact_to_the_bit(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("bits") / "s.json"
    save(scores, path)
    assert load(path).values.tobytes() == scores.values.tobytes()
    assert load(path) == scores


def test_a_changed_score_is_refused_until_the_change_is_meant(tmp_path):
    path = tmp_path / "s.json"
    save(full_scores(), path)
    text = path.read_text()
    score = next(row["score"] for row in json.loads(text)["layers"])
    path.write_text(text.replace(f'"score": {score!r}', f'"score": {2 * score!r}', 1))
    with pytest.raises(BadScores, match="does not match its sha256: damaged, or changed by hand; delete the line"):
        load(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if '"sha256":' not in line or "layers" in line[:10]))
    assert load(path).values[0] == 2 * score


def test_a_file_of_before_seals_is_read(tmp_path):
    save(full_scores(), tmp_path / "s.json")
    rewritten(tmp_path / "s.json", lambda fields: fields.pop("sha256"))
    assert load(tmp_path / "s.json") == full_scores()


def test_orders_and_stated_bounds_survive(tmp_path):
    path = tmp_path / "s.json"
    order = LayerScores.from_order(LAYERS, LAYERS[::-1], criterion="paper", granularity="linear")
    save(order, path)
    assert load(path) == order and load(path).ordinal
    bounded = scored(LAYERS, np.zeros(15), bounds=np.array([[-0.1, 0.3]] * 15), repeats=np.zeros((1, 15)))
    save(bounded, path)
    assert load(path) == bounded


def test_one_layer_per_line_with_its_interval(tmp_path):
    save(full_scores(), tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    lines = [line for line in text.splitlines() if '"name"' in line]
    assert len(lines) == len(LAYERS)
    first = json.loads(lines[0].strip().rstrip(","))
    assert first["name"] == "layers.0.attn.q" and first["score"] == full_scores().values[0]
    assert first["interval"] == full_scores().interval()[0].tolist()
    fields = json.loads(text)
    assert fields["format"] == "keylayers/scores/1" and fields["model"]["id"] == "some/model"
    assert fields["layers"][-1]["tied_to"] == "embed.weight" and fields["provenance"]["data"][0]["records"] == 830


def test_a_file_by_hand_needs_little(tmp_path):
    layers = [{"name": f"h.{b}", "block": b, "kind": "block", "size": 10, "score": b} for b in range(3)]
    fields = {"format": "keylayers/scores/1", "criterion": "hand", "granularity": "block", "layers": layers}
    (tmp_path / "s.json").write_text(json.dumps(fields))
    assert load(tmp_path / "s.json").values.tolist() == [0, 1, 2]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "s.json"
    save(noise(LAYERS, 0), path)

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BadInput, match="the disk is full"):
        save(noise(LAYERS, 1), path)
    assert load(path) == noise(LAYERS, 0)
    assert os.listdir(tmp_path) == ["s.json"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere/s\.json: cannot be written"):
        save(noise(LAYERS), tmp_path / "nowhere" / "s.json")


def test_written_files_have_ordinary_permissions(tmp_path):
    save(noise(LAYERS), tmp_path / "s.json")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "s.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_not_whole_strict_json_is_refused(tmp_path):
    path = tmp_path / "s.json"
    save(full_scores(), path)
    whole = path.read_text()
    for text, words in [
        (whole[: len(whole) // 2], "not whole, strict JSON"),
        ("", "not whole, strict JSON"),
        (whole.replace('"seed": 3', '"seed": NaN'), "NaN is not a JSON number"),
        (whole.replace('"seed": 3', '"seed": -Infinity'), "-Infinity is not a JSON number"),
        (whole.replace('"seed": 3', '"seed": 3, "seed": 4'), "'seed' is given twice"),
        ("[" * 100_000, "not whole, strict JSON: nested too deeply"),
        (whole.replace('"seed": 3', '"seed": 1e400'), "Out of range"),
        (whole.replace('"seed": 3', '"seed": "\\ud800"'), "surrogates"),
    ]:
        path.write_text(text)
        with pytest.raises(BadInput, match=words) as refusal:
            load(path)
        assert "s.json" in str(refusal.value) and "keylayers score" in str(refusal.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="codec can't decode byte 0xff"):
        load(path)
    with pytest.raises(BadInput, match=r"gone\.json cannot be read"):
        load(tmp_path / "gone.json")
    with pytest.raises(BadInput, match="is a folder, and only regular files are read"):
        load(tmp_path)
    path.write_text("[1, 2]")
    with pytest.raises(BadScores, match="holds a list"):
        load(path)


def set_in(*path_and_value):
    *path, last, value = path_and_value

    def change(fields):
        for key in path:
            fields = fields[key]
        fields[last] = value

    return change


def drop(*path):
    *path, last = path

    def change(fields):
        for key in path:
            fields = fields[key]
        del fields[last]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            set_in("format", "keylayers/scores/2"),
            r"field 'format' is \"keylayers/scores/2\"; expected 'keylayers/scores/1'",
        ),
        (drop("format"), "field 'format' is missing"),
        (set_in("criterion", 3), "field 'criterion' is 3; expected a non-empty text"),
        (set_in("granularity", "linaer"), "did you mean 'linear'"),
        (set_in("layers", []), "at least one layer"),
        (set_in("layers", {"a": 1}), "expected a list of objects"),
        (set_in("layers", 3, "score", None), r"layers\[3\]: field 'score' is null; expected a number"),
        (set_in("layers", 3, "score", True), r"layers\[3\]: field 'score' is true"),
        (set_in("layers", 3, "score", 10**400), "fits in 64 bits"),
        (drop("layers", 3, "score"), r"layers\[3\]: field 'score' is missing"),
        (set_in("layers", 3, "block", -1), r"layers\[3\]: field 'block' is -1"),
        (set_in("layers", 3, "parameters", "w"), "expected a list of texts"),
        (set_in("layers", 3, "size", 1.5), "field 'size' is 1.5; expected a whole number"),
        (set_in("layers", 3, "interval", [0, 99]), "the 95 % interval of the repeats"),
        (set_in("layers", 3, "interval", [0]), "expected a list of 2 numbers"),
        (set_in("layers", 3, "name", "layers.0.attn.q"), r"repeated: layers\.0\.attn\.q"),
        (set_in("layers", 3, "scroe", 1), "unknown field in .* 'scroe'; did you mean 'score'"),
        (set_in("critereon", "x"), "did you mean 'criterion'"),
        (set_in("repeats", [[1, 2]]), "expected a list of 15 numbers"),
        (set_in("repeats", []), "one list of scores per repeat"),
        (set_in("groups", "english", [1]), "expected a list of 15 numbers"),
        (set_in("groups", []), "expected an object"),
        (set_in("provenance", "seed", 1.5), "field 'seed' is 1.5"),
        (set_in("provenance", "settings", 1), "expected an object"),
        (set_in("provenance", "sead", 1), "did you mean 'seed'"),
        (set_in("model", "x"), "field 'model' is \"x\""),
        (set_in("ordinal", 1), "true or false"),
    ],
)
def test_an_unsound_field_is_named_with_what_was_expected(tmp_path, change, words):
    path = tmp_path / "s.json"
    save(full_scores(), path)
    rewritten(path, change)
    with pytest.raises((BadScores, UnknownName), match=words) as refusal:
        load(path)
    assert "s.json" in str(refusal.value)


def test_a_number_too_large_for_a_float_names_its_layer(tmp_path):
    path = tmp_path / "s.json"
    save(noise(LAYERS), path)
    fields = json.loads(path.read_text())
    fields["layers"][2]["score"] = "HUGE"
    path.write_text(json.dumps(fields).replace('"HUGE"', "1e999"))
    with pytest.raises(BadScores, match=r"layer 'layers\.0\.attn\.v' has the score inf"):
        load(path)


def test_some_intervals_are_not_enough(tmp_path):
    path = tmp_path / "s.json"
    save(noise(LAYERS), path)
    rewritten(path, set_in("layers", 0, "interval", [0.0, 1.0]))
    with pytest.raises(BadScores, match="1 of 15 layers have an interval"):
        load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_changed_field_loads_or_is_refused_in_words(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "s.json"
    save(full_scores(), path)
    fields = json.loads(path.read_text())
    where = data.draw(st.sampled_from([fields, fields["layers"][1], fields["provenance"], fields["groups"]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(JSON)
    path.write_text(json.dumps(fields))
    try:
        assert isinstance(load(path), LayerScores)
    except KeylayersError as refusal:
        assert "s.json" in str(refusal)


@given(st.integers(0, 4000), st.binary(max_size=4))
def test_any_flipped_bytes_load_or_are_refused_in_words(tmp_path_factory, at, junk):
    path = tmp_path_factory.mktemp("bytes") / "s.json"
    save(full_scores(), path)
    raw = path.read_bytes()
    path.write_bytes(raw[:at] + junk + raw[at + len(junk) :])
    try:
        assert isinstance(load(path), LayerScores)
    except KeylayersError as refusal:
        assert "s.json" in str(refusal)
