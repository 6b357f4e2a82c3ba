"""The report from the command line: asked for, and at the end of what made a run."""

import pytest

from tests.report.examples import demo_runs, score_run, scores


@pytest.fixture
def files(tmp_path):
    from keylayers.scores import save

    for name, seed in (("a", 1), ("b", 2)):
        save(scores(seed), tmp_path / f"{name}.json")


def test_a_report_of_a_run_and_of_a_folder_of_runs(cli, plots, tmp_path):
    score_run(tmp_path / "run")
    result = cli("report", "run")
    assert result.code == 0 and result.out.endswith("report in run/report.html\n") and "heatmap.svg" in result.out
    assert (tmp_path / "run" / "report.html").is_file()
    demo_runs(tmp_path / "demo")
    assert cli("report", "demo", "--out", "x/page.html").code == 0 and (tmp_path / "x" / "page.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "'nowhere' is no folder"),
        (["empty"], "'empty' holds no run.json"),
        (["run", "--out", "file/page.html"], "cannot write 'file/page.html'"),
    ],
)
def test_what_cannot_be_reported_says_why(cli, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    score_run(tmp_path / "run")
    result = cli("report", *words)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_scoring_and_tuning_end_with_a_report(cli, plots, score_words, tune_words, tmp_path):
    result = cli("score", "path_integral", *score_words, "--set", "points=1", "--out", "run")
    assert result.out.splitlines()[-1] == "report in run/report.html"
    result = cli("tune", *tune_words, "--scores", "run/path_integral.json", "--against", "last:30%", "--out", "tune")
    assert result.out.splitlines()[-1] == "report in tune/report.html"
    page = (tmp_path / "tune" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "report" / "heatmap.svg").is_file() and (
        tmp_path / "tune" / "report" / "arms.png"
    ).is_file()
    assert "last:30%" in page and "path_integral" in page and page.count('<b class="c') == 22


def test_a_report_that_fails_is_said_and_loses_nothing(cli, score_words, tmp_path, monkeypatch):
    from keylayers.report import page

    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    result = cli("score", "random", *score_words, "--out", "run")
    assert result.code == 0 and "stored in run/random.json" in result.out and "report in" not in result.out
    assert "the results are whole, but their report could not be made (ZeroDivisionError" in result.err
    assert "keylayers report run" in result.err


def test_a_comparison_is_a_run_with_copies_of_what_it_compared(cli, files, tmp_path):
    result = cli("compare", "a.json", "b.json", "--top", "30%", "--out", "run")
    assert result.code == 0 and result.out.splitlines()[-1] == "report in run/report.html"
    from keylayers.runs import read_json
    from keylayers.scores import agreement, load

    pair = read_json(tmp_path / "run" / "parts" / "agreement.json")["value"]["pairs"][0]
    truth = agreement(scores(1), scores(2), 0.3)
    assert pair["labels"] == ["a", "b"] and pair["jaccard"] == truth.top.jaccard
    assert pair["expected_jaccard"] == truth.top.expected and pair["p_values"]["kind"] == truth.top.p_value("kind")
    assert load(tmp_path / "run" / "scores" / "002.json") == scores(2)
    again = cli("compare", "a.json", "b.json", "--top", "30%", "--out", "run")
    assert again.code == 0 and again.out == result.out
    other = cli("compare", "a.json", "b.json", "--top", "50%", "--out", "run")
    assert other.code == 2 and "top: stored 0.3, given 0.5" in other.err
    assert cli("compare", "a.json", "b.json", "--top", "50%", "--out", "run", "--fresh").code == 0


def test_a_comparison_without_a_name_has_one_of_its_own(cli, files, tmp_path):
    outs = [cli("compare", "a.json", "b.json", "--top", top).out.splitlines()[-1] for top in ("30%", "30%", "50%")]
    assert outs[0] == outs[1] != outs[2] and outs[0].startswith("report in runs/compare-")


def test_a_comparison_that_cannot_be_stored_is_still_shown(cli, files, tmp_path):
    (tmp_path / "runs").write_text("")
    result = cli("compare", "a.json", "b.json")
    assert result.code == 0 and "chance" in result.out and "shown but not stored" in result.err
    refused = cli("compare", "a.json", "b.json", "--out", "runs/x")
    assert refused.code == 2 and "Traceback" not in refused.err
