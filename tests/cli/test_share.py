"""`keylayers share`: the curve beside random layers, an answer in words, a policy that tune takes, refusals."""

import re
import shutil

import pytest

from keylayers.cli.share import answer
from keylayers.measures import Interval
from keylayers.measures.gain_curve import GainCurve, Kept
from keylayers.recipes.share import Share
from keylayers.runs import read_json
from keylayers.scores import load, parse, save, select


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory):
    """A scoring run with a real gain."""
    from keylayers.recipes.score import score_layers
    from keylayers.runs import open_run
    from keylayers.training.trainer import TrainSettings
    from tests.small_world import request

    steps = TrainSettings(steps=40, batch_size=8, learning_rate=1e-2, save_every=10**9)
    asked = request(world, "path_integral", stage_one=steps, settings={"points": 1})
    folder = tmp_path_factory.mktemp("scored") / "run"
    with open_run(folder, "score", asked) as run:
        score_layers(asked, run)
    return folder


@pytest.fixture
def words(world, scored):
    """Options of a short curve."""
    return {"--model": world.model, "--data": world.data, "--tuned": scored, "--max-length": 32, "--held-out": 12,
            "--points": 4, "--out": "run"}  # fmt: skip


def spelled(options: dict) -> list:
    return [word for pair in options.items() for word in pair]


def test_the_answer_the_curve_beside_random_layers_and_the_policy(cli, scored, words):
    result = cli("share", scored, *spelled(words), "--within", "20%")
    assert result.code == 0, result.err
    stored = read_json("run/share.json")
    k, lines = stored["k"], result.out.splitlines()
    header = next(line for line in lines if line.startswith("layers"))
    assert "of what LoRA adds" in header and "random, mean" in header
    rows = {int(row.split()[0]): row for row in lines if re.match(r" *\d+ +[\d.]+% ", row)}
    assert sorted(rows) == [point["k"] for point in stored["calibration"]["points"]]
    scores = load(scored / "path_integral.json")
    for point in stored["calibration"]["points"]:
        cells = rows[point["k"]].split()
        top = select(scores, f"top:{point['k']}", allow_total=True)
        adds = [layer.lora_size for layer in scores.layers]
        part = sum(size for size, inside in zip(adds, top.mask, strict=True) if inside) / sum(adds)
        assert cells[1:4] == [f"{part:.1%}", f"{point['share']:.3f}", f"{point['low']:.3f}"]
        assert (len(point["random"]) == 5) == (point["k"] < 22)
    assert "chosen" in rows[k]
    assert f"The {k} most critical of 22 layers" in result.out and "keep 80% of the gain" in result.out
    assert re.search(r"On \d+ test records, which chose nothing, they keep", result.out)
    assert "it is not retraining" in result.out
    if k < 22:
        assert stored["policy"] == f"top:{k}" and str(parse(stored["policy"])) == f"top:{k}"
        assert f"--select top:{k}" in result.out and f"--against random:{k}:match=kind" in result.out
        assert "--max-length 32" in result.out
        assert "Random layers of the same kinds keep" in result.out
        enough = int(re.findall(r"Of the sizes tried, (\d+) random layers", result.out)[0])
        means = {one["k"]: sum(one["random"] or [1]) / 5 for one in stored["calibration"]["points"] if one["k"] < 22}
        assert all(mean >= 0.8 for size, mean in means.items() if size >= enough)
        assert means.get(max([size for size in means if size < enough], default=0), 0) < 0.8
    again = cli("share", scored, *spelled(words), "--within", "20%")
    assert again.out == result.out


@pytest.mark.parametrize(("of", "counted"), [("weights", "of the layers' parameters"), ("layers", "of the layers")])
def test_shares_are_counted_in_what_is_asked(cli, scored, words, of, counted):
    shown = cli("share", scored, *spelled(words), "--of", of).out
    assert counted in shown and re.search(r"^ *22 +100\.0% ", shown, flags=re.MULTILINE)
    if of == "layers":
        assert re.search(r"^ *1 +4\.5% ", shown, flags=re.MULTILINE)


BAD = {
    "part": ({"--within": "all"}, "--within all: expected the part of the gain that may be lost, such as 5%"),
    "no part": (
        {"--within": "0%"},
        "--within 0%: expected the part of the gain that may be lost, such as 5%, between 0% and 100%",
    ),
    "unit": ({"--of": "lorra"}, "'lorra'; did you mean 'lora'"),
    "tuned": ({"--tuned": "nowhere/at/all"}, "no folder 'nowhere/at/all'"),
    "untuned": ({"--tuned": "base"}, "equal tensors: nothing was tuned"),
    "draws": ({"--draws": "2"}, "--draws 2: expected a whole number of at least 5"),
    "points": ({"--points": "1"}, "--points 1: expected a whole number of at least 2"),
    "data": ({"--data": "nowhere.jsonl"}, "no such data file: nowhere.jsonl"),
    "too few records": ({"--held-out": "1"}, "at least two values"),
    "foreign scores": ({"scores": "foreign.json"}, "scored layers are not in it"),
    "no scores": ({"scores": "nowhere.json"}, "nowhere.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_text_and_nothing_is_stored(cli, world, scored, words, tmp_path, case):
    from keylayers.layers import named_layers
    from keylayers.scores import LayerScores
    from tests.tiny_models import build

    changes, said = BAD[case]
    shutil.copytree(world.model, tmp_path / "base")
    layers = named_layers(build("gpt2"))
    save(LayerScores(layers, list(range(len(layers))), "random", "linear"), tmp_path / "foreign.json")
    options = words | changes
    scores = options.pop("scores", scored)
    result = cli("share", scores, *spelled(options))
    assert result.code == 2 and said in result.err and "Traceback" not in result.err, result.err
    assert not (tmp_path / "run" / "share.json").exists()


def test_a_model_that_tuning_made_worse_says_so(cli, world, scored, words, tmp_path):
    from peft import PeftModel

    model = PeftModel.from_pretrained(world.inputs().load_model().model, str(scored / "stage1" / "adapter"))
    model.merge_and_unload().save_pretrained(tmp_path / "better")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(world.model / file, tmp_path / "better" / file)
    result = cli("share", scored, *spelled(words | {"--model": "better", "--tuned": str(world.model)}))
    assert result.code == 2 and "the tuned model is no better than the base on the calibration records" in result.err


def share(points: dict[int, float], k: int | None, elsewhere: int = 0) -> Share:
    """A result over four layers with those lower bounds."""
    gain = Interval(1.0, 0.9, 1.1)
    draws = {size: () if size == 4 else (0.5, 0.6, 0.5, 0.6, 0.5) for size in points}
    kept = tuple(Kept(size, low + 0.01, low, low + 0.02, draws[size]) for size, low in points.items())
    test = None if k is None else GainCurve(2.0, 1.0, gain, 9, tuple(one for one in kept if one.k == k))
    return Share(k, GainCurve(2.0, 1.0, gain, 8, kept), test, (), elsewhere, 0)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (
            share({1: 0.2, 4: 0.9}, None, 7),
            "all 4 keep 91.0%, at least 90.0%. Tuning also changed 7 tensors",
        ),
        (share({1: 0.2, 4: 0.9}, None), "No set of layers surely keeps 97.5% of the gain: all 4 keep 91.0%"),
        (share({1: 0.2, 4: 0.99}, 4), "That is every layer: nothing smaller is sure enough"),
        (share({1: 0.98, 4: 1.0}, 1), "The 1 most critical of 4 layers (40% counted) keep 97.5% of the gain: 99.0% on"),
        (share({1: 0.98, 4: 1.0}, 1), "the ranking adds +0.450 [+0.382, +0.518] over draws"),
        (share({1: 0.5, 4: 1.0}, 1), "which does not confirm it"),
        (share({1: 0.5, 4: 1.0}, 1), "the ranking adds nothing that these draws show (-0.030 [-0.098, +0.038]"),
    ],
)
def test_the_answer_says_what_the_bounds_allow(result, said):
    assert said in answer(result, 0.025, [0.4, 0.6, 0.8, 1.0], "counted")
