"""`keylayers reproduce`: names are checked before anything is loaded; a study ends in a page and its figures."""

import dataclasses
import json

from keylayers.cli.terminal import UNFINISHED, redact_paths
from keylayers.errors import BadInput
from keylayers.papers.ila import plan
from keylayers.papers.ila import study as study_module
from keylayers.papers.registry import PAPERS
from keylayers.studies.arms import Budget
from keylayers.studies.retraining import LearningRateGrid
from keylayers.studies.study import Paper
from keylayers.studies.text_task import Task
from tests.papers.test_ila import PARTS, QUICK, WAYS


def test_unknown_names_are_told_with_near_ones_and_nothing_is_made(cli, tmp_path):
    for words, said in (
        (["reproduce", "ilo"], "unknown paper 'ilo'; did you mean 'ila'"),
        (["reproduce", "ila", "--scale", "smol"], "unknown scale 'smol'; did you mean 'smoke' or 'small'"),
        (["reproduce", "ila", "--processes", "0"], "--processes 0: expected at least 1"),
    ):
        done = cli(*words, "--out", str(tmp_path / "run"))
        assert done.code == 2 and said in done.err
    assert not (tmp_path / "run").exists()


def test_a_study_leaves_its_page_and_every_figure_behind_it(cli, world, tmp_path, monkeypatch):
    task = Task("small", world.inputs(), dataclasses.replace(QUICK, steps=2))
    scale = plan.Scale(
        (task,),
        seeds=2,
        budget=Budget(0.4),
        all_rates=LearningRateGrid((1e-2,)),
        rates=LearningRateGrid((1e-2,)),
        ways=WAYS[1:3],
        matched=WAYS[1:2],
    )
    scale = dataclasses.replace(scale, **dict.fromkeys(PARTS))
    monkeypatch.setattr(plan, "scale_of", lambda name: scale)
    monkeypatch.setattr(study_module, "DRAWS", 1)
    done = cli("reproduce", "ila", "--processes", "1", "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    page = (tmp_path / "run" / "results.md").read_text()
    assert page in done.out + "\n" and "### Claims" in page and page.startswith("# ")
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    stored = stored.get("value", stored)
    assert stored["tasks"][0]["arms"]["midpoint"]["retrained"][1]["test"] > 0


def test_a_page_written_midway_says_that_it_is_unfinished(cli, tmp_path, monkeypatch):
    def parts(asked, run, processes):
        yield 1
        if not (tmp_path / "whole").exists():
            raise BadInput("the second part broke off")
        yield 2

    paper = Paper(
        "Half",
        lambda name: name,
        parts,
        lambda results, scale: (f"Part {results}.", ()),
        lambda results: {"part": results},
    )
    monkeypatch.setitem(PAPERS, "ila", ("what?", lambda: paper))
    words = ["reproduce", "ila", "--processes", "1", "--out", str(tmp_path / "run")]
    assert cli(*words).code == 2
    assert (tmp_path / "run" / "results.md").read_text() == f"{UNFINISHED}{paper.render_page(1, 'smoke')}"
    (tmp_path / "whole").touch()
    assert cli(*words).code == 0
    assert (tmp_path / "run" / "results.md").read_text() == paper.render_page(2, "smoke")


def test_results_name_variables_and_not_the_places_of_one_machine(monkeypatch):
    monkeypatch.setenv("KEYLAYERS_MODELS", "/somewhere/models")
    monkeypatch.delenv("KEYLAYERS_DATA", raising=False)
    assert redact_paths('{"model": "/somewhere/models/stories260K"}') == '{"model": "$KEYLAYERS_MODELS/stories260K"}'


def test_only_a_scale_that_has_real_images_asks_for_them(monkeypatch):
    for name in ("KEYLAYERS_MODELS", "KEYLAYERS_DATA"):
        monkeypatch.delenv(name, raising=False)
    for paper in ("lfa", "ssft", "clat"):
        experiment = PAPERS[paper][1]()
        said = [experiment.missing_requirements(experiment.scale_of(scale)) for scale in ("smoke", "small")]
        assert said[0] is None and "set KEYLAYERS_MODELS" in said[1]
