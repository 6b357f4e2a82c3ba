"""Listing layers and comparing score files: the figures, and chance beside them."""

import pytest

from keylayers.cli.show import _labels
from keylayers.cli.terminal import table


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three score files of random numbers over 20 layers, and one of other layers."""
    from keylayers.scores import LayerScores, save
    from tests.scores.examples import network

    folder = tmp_path_factory.mktemp("scores")
    import numpy as np

    for name, layers, seed in (
        ("a", network(5), 1),
        ("b", network(5), 2),
        ("c", network(5), 3),
        ("other", network(6), 1),
    ):
        values = np.random.default_rng(seed).random(len(layers))
        save(LayerScores(layers, values, f"criterion_{name}", "linear"), folder / f"{name}.json")
    return folder


def test_layers_are_listed_with_sizes_and_totals(cli, world):
    shown = cli("layers", world.model).out
    assert shown.splitlines()[2].split() == ["model.layers.0.self_attn.q_proj", "0", "self_attn.q_proj", "256"]
    assert "22 layers of granularity linear" in shown
    assert "3 layers of granularity block" in cli("layers", world.model, "--granularity", "block").out


def test_criteria_are_listed(cli):
    shown = cli("criteria").out
    assert all(name in shown for name in ("learned_mask", "path_integral", "leave_one_out", "random"))


def test_two_files_are_compared_beside_chance(cli, files):
    shown = cli("compare", files / "a.json", files / "b.json", "--top", "30%")
    assert shown.code == 0 and "chance" in shown.out and "Jaccard" in shown.out and "Spearman" in shown.out


def test_three_files_make_a_table_beside_chance(cli, files):
    shown = cli("compare", files / "a.json", files / "b.json", files / "c.json")
    assert shown.code == 0 and "chance" in shown.out
    assert all(f"{first}" in shown.out for first in ("a", "b", "c"))


def test_a_scoring_run_stands_for_its_score_files(cli, world, score_words):
    assert cli("score", "random", "delta_norm", *score_words, "--out", "run").code == 0
    assert "chance" in cli("compare", "run").out


@pytest.mark.parametrize("top", ["0.3", "30%"])
def test_a_share_is_written_either_way(cli, files, top):
    assert cli("compare", files / "a.json", files / "b.json", "--top", top).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.json"], "compare needs two or more score files, found 1"),
        (["a.json", "b.json", "--top", "many"], "--top many: expected a share such as 75% or 0.75"),
        (
            ["a.json", "b.json", "--top", "150%"],
            "--top 150%: expected a share such as 75% or 0.75, between 0% and 100%",
        ),
        (["a.json", "b.json", "--acted", "middle"], "middle"),
        (["a.json", "other.json"], "layers"),
        (["a.json", "nowhere.json"], "nowhere.json cannot be read (No such file"),
        (["a.json", "empty.json"], "is not whole, strict JSON"),
    ],
)
def test_files_that_cannot_be_compared_say_why(cli, files, words, said):
    (files / "empty.json").write_text("")
    result = cli("compare", *(files / word if word.endswith(".json") else word for word in words))
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere/at/all"], "no folder 'nowhere/at/all'"),
        (["bundled:lama"], "unknown bundled model 'lama'; did you mean 'llama'"),
        (["keylayers.models.cifar:resnet21"], "'resnet21'; did you mean 'resnet"),
        (["no_such_module:net"], "cannot import 'no_such_module'"),
        (["bundled:llama", "--granularity", "liner"], "unknown granularity 'liner'; did you mean 'linear'"),
    ],
)
def test_a_model_that_cannot_be_read_says_why(cli, words, said):
    result = cli("layers", *words)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_labels_are_the_shortest_that_tell_files_apart():
    from pathlib import Path

    assert _labels([Path("x/a.json"), Path("x/b.json")]) == ["a", "b"]
    assert _labels([Path("x/a.json"), Path("y/a.json")]) == ["x/a", "y/a"]
    assert _labels([Path("a.json"), Path("a.json")]) == ["0: a.json", "1: a.json"]


def test_tables_align_words_left_and_numbers_right():
    lines = table(("name", "n"), [("a", "1"), ("longer", "200")]).splitlines()
    assert lines == ["name      n", "------  ---", "a         1", "longer  200"]
