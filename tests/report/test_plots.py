"""Plots as files: sound SVG and PNG, whatever the names in them."""

import xml.etree.ElementTree as ElementTree

import pytest

from keylayers.layers.layer import Layer
from keylayers.report.choice import choose
from keylayers.report.collect import collect_runs
from keylayers.report.heatmap import draw_heatmap
from keylayers.report.plots import draw
from keylayers.report.words import printable
from tests.report.examples import LAYERS, compare_run, score_run, scores, tune_run
from tests.report.test_page import PAYLOADS


def drawn(run, folder):
    found = collect_runs(run)
    return {path.name: path for path in draw(found, choose(found), folder)}


def texts(path) -> str:
    """The texts of an SVG, after checking that nothing in it can act or load."""
    root = ElementTree.fromstring(path.read_bytes())
    for node in root.iter():
        assert node.tag.split("}")[-1] not in ("script", "foreignObject", "iframe", "animate", "set")
        for name, value in node.attrib.items():
            assert not name.split("}")[-1].startswith("on")
            if name.endswith("href"):
                assert value.startswith(("#", "data:image/png;base64,"))
    return " ".join(" ".join(root.itertext()).split())


def test_each_kind_of_run_has_its_plots(tmp_path):
    assert sorted(drawn(tune_run(tmp_path / "tune"), tmp_path / "a")) == [
        "arms.png", "arms.svg", "heatmap.png", "heatmap.svg", "learning.png", "learning.svg", "ranking.png",
        "ranking.svg",
    ]  # fmt: skip
    files = drawn(compare_run(tmp_path / "compare", scores(), scores(1)), tmp_path / "b")
    assert sorted(files) == ["heatmap.png", "heatmap.svg", "ranking.png", "ranking.svg"]
    assert files["heatmap.png"].read_bytes().startswith(b"\x89PNG")


def test_a_heatmap_numbers_every_layer_and_a_ranking_names_it(tmp_path):
    files = drawn(score_run(tmp_path / "run", scores(repeats=0)), tmp_path / "plots")
    words = texts(files["heatmap.svg"]).split()
    assert all(words.count(str(rank)) >= 1 for rank in range(1, len(LAYERS) + 1))
    assert all(layer.name in texts(files["ranking.svg"]) for layer in LAYERS)


def test_the_same_run_gives_the_same_plots(tmp_path):
    run = score_run(tmp_path / "run", scores())
    one, two = drawn(run, tmp_path / "a"), drawn(run, tmp_path / "b")
    assert all(one[name].read_bytes() == two[name].read_bytes() for name in one)


@pytest.mark.parametrize("payload", [PAYLOADS[0], PAYLOADS[2], PAYLOADS[5], "$\\frac{$"])
def test_hostile_names_stay_texts(tmp_path, payload):
    layers = [Layer(f"{payload}.{i}", i, payload, (f"{i}.w",), 4) for i in range(6)]
    folder = tune_run(tmp_path / "run", arms=("top:30%",), chosen_by=scores(layers=layers))
    files = drawn(folder, tmp_path / "plots")
    draw_heatmap([scores(layers=layers)] * 2, [payload, f"{payload} 2"], tmp_path / "both.svg")
    shown = " ".join(printable(payload).split())
    assert texts(files["heatmap.svg"]).count(shown) == 1 and texts(files["ranking.svg"]).count(shown) == 6
    ElementTree.fromstring((tmp_path / "both.svg").read_bytes())
