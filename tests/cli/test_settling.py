"""`score --stop-early` says when and why stage 1 stopped, also where all is done, and refuses what is no use."""

import pytest

from keylayers.recipes.early_stopping import settling_of
from keylayers.runs import read_run


def test_it_says_when_and_why_it_stopped_and_says_the_same_again(cli, score_words):
    words = ("score", "path_integral", *score_words, "--steps", 20, "--stop-early", "--settled", "0.2", "--out", "run")
    result = cli(*words)
    assert result.code == 0, result
    stop = settling_of("run")["stopped_after"]
    assert stop < 20 and f"stage 1 stopped after {stop} of 20 steps: the ranking had settled" in result.out
    assert "Spearman" in result.out and "looking took" in result.out and "cosine schedule" in result.out
    assert f"step {stop} of 20" in result.err and "settled, stopping" in result.err
    assert "stored in run/path_integral.json" in result.out
    again = cli(*words)
    assert again.code == 0 and again.out == result.out and "stage 1, step" not in again.err
    assert read_run("run")["settings"]["stop_early"]["rule"]["target"] == 0.2


def test_where_it_does_not_settle_all_steps_are_made(cli, score_words):
    result = cli("score", "delta_norm", *score_words, "--steps", 2, "--stop-early", "--out", "run")  # one pair of looks
    assert result.code == 0 and "stage 1 ran all 2 steps: by then the ranking had not settled" in result.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("path_integral", "--settled", "0.8"), "--settled 0.8 says when --stop-early stops; give --stop-early, too"),
        (("path_integral", "--stop-early", "--settled", "1.5"), "--settled 1.5: expected an agreement above 0"),
        (("path_integral", "--stop-early", "--settled", "nan"), "--settled nan: expected an agreement above 0"),
        (("random", "--stop-early"), "random needs no stage 1; drop one"),
        (("delta_norm", "--stop-early", "--tuned", "there"), "--tuned there takes its place; drop one"),
    ],
)
def test_what_is_no_use_is_refused_in_the_words_that_were_typed(cli, score_words, words, said, tmp_path):
    result = cli("score", *words, *score_words, "--out", "run")
    assert result.code == 2 and said in result.err and "Traceback" not in result.err
    assert not (tmp_path / "run" / "stage1").exists()
