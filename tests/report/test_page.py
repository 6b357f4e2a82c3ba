"""The page: what it holds, that nothing in it can act, and that it loads nothing."""

import re
from html.parser import HTMLParser

import pytest

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.report.collect import collect_runs
from keylayers.report.page import render, write_report
from keylayers.runs import open_run, write_json
from tests.report.examples import (
    INPUTS,
    LAYERS,
    arguments,
    compare_run,
    demo_runs,
    result,
    score_run,
    scores,
    tune_run,
)

TAGS = set(
    "html head meta title style body header main footer section h1 h2 h3 p ul li dl dt dd div span i b sup small "
    "strong code pre a table thead tbody tr th td details summary figure figcaption svg path polyline bdi".split()
)
VOID = {"meta"}
PAYLOADS = (
    "<script>alert(1)</script>",
    '" onload="alert(1)" x="',
    "'><img src=x onerror=alert(1)>",
    "</style></title><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "$x^2$ \\undefined{ &lt;b&gt; \x00 \u202e",
)


class Page(HTMLParser):
    """Tags, attributes and texts of a page; raises on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path",):
            assert self.open.pop() == tag, f"</{tag}> closes nothing, at {self.getpos()}"

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def checked(html: str) -> Page:
    """The page, after what must hold for every one."""
    page = Page(html)
    assert set(page.tags) <= TAGS, set(page.tags) - TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    for tag, _, link in [one for one in page.attributes if one[1] == "href"]:
        assert tag == "a" and re.fullmatch(r"report/[a-z]+\.(svg|png)", link)
    for style in page.values("style"):
        assert re.fullmatch(r"((left|bottom|width):-?[0-9.]+%;?|--(b|k|rows|columns):[0-9]+;?)+", style), style
    css = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in css and "@import" not in css
    assert len(html.encode()) < 2_000_000
    return page


@pytest.fixture(scope="module", params=["score", "tune", "compare", "demo", "unfinished"])
def any_run(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param) / "run"
    made = {
        "score": lambda: score_run(place),
        "tune": lambda: tune_run(place),
        "compare": lambda: compare_run(place, scores(), scores(1, "delta_norm")),
        "demo": lambda: demo_runs(place),
        "unfinished": lambda: tune_run(place, finished=False),
    }
    return request.param, made[request.param]()


SECTIONS = {
    "score": "selection heatmap ranking agreement learning costs limits provenance repeat",
    "tune": "comparison selection heatmap ranking learning costs limits provenance repeat",
    "compare": "agreement heatmap ranking costs limits provenance repeat",
    "demo": "comparison selection heatmap ranking agreement learning costs limits provenance repeat",
    "unfinished": "comparison selection learning costs limits provenance repeat",
}


def test_every_kind_of_run_has_its_sections(any_run):
    kind, folder = any_run
    page = checked(render(collect_runs(folder), ("report/arms.svg",)))
    assert [value for tag, name, value in page.attributes if tag == "section"] == SECTIONS[kind].split()
    assert page.tags.count("h1") == 1 and page.tags.count("h2") == len(SECTIONS[kind].split())


def test_heatmap_and_ranking_have_one_entry_per_layer(tmp_path):
    html = render(collect_runs(score_run(tmp_path / "run", scores())))
    assert len(re.findall(r'<b class="c\d+', html)) == len(LAYERS)
    assert len(re.findall(r'<div class="rank( chosen)?" role="row">', html)) == len(LAYERS)
    assert len(re.findall(r'<b class="c\d+ chosen"', html)) == 5


def test_figures_settings_and_the_command_are_there(tmp_path):
    page = checked(render(collect_runs(tune_run(tmp_path / "run"))))
    for text in ("2.1000", "2.6167", "−0.5167", "some/model", "t" * 64, "inputs.model", "5 MiB", "1,234"):
        assert text in page.words, text
    assert f"keylayers tune --out {tmp_path / 'run'}" in page.words


def test_what_is_unfinished_is_said_at_the_top(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run", "score", {"criteria": ["random"]}):
        raise ZeroDivisionError("by <zero>")
    page = checked(render(collect_runs(tmp_path / "run")))
    assert "Nothing is finished in this run yet." in page.words
    assert "failed: ZeroDivisionError: by <zero>" in page.words and "random: not scored yet" in page.words


def test_a_finished_run_whose_results_are_of_another_version_is_not_called_unfinished(tmp_path):
    with open_run(tmp_path / "run", "harden", {}) as run:
        write_json(run.path / "results.json", {"accuracy": 0.5})
    words = checked(render(collect_runs(tmp_path / "run"))).words
    assert "The results of this run cannot be read." in words and "Nothing is finished" not in words


def test_files_that_no_score_names_are_among_the_data(tmp_path):
    files = {"my.npz": "0a" * 32, INPUTS["data"]: "0b" * 32}
    with open_run(tmp_path / "run", "harden", {"given": files}):
        pass
    words = checked(render(collect_runs(tmp_path / "run"))).words
    assert "my.npz" in words and "0a" * 32 in words and "no digest" not in words
    words = checked(render(collect_runs(score_run(tmp_path / "scored", given=files)))).words
    assert "0a" * 32 in words and "t" * 64 in words
    assert "Records sha256" in words.split("Settings and provenance")[1].replace("  ", " ")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_texts_stay_texts(tmp_path, payload):
    shown = " ".join(payload.replace("\x00", "\ufffd").replace("\u202e", "\ufffd").split())
    layers = (
        Layer(f"a.{payload}", 0, payload, (f"{payload}.weight",), 4),
        *(Layer(f"b.{i}", i, "up", (f"b.{i}.weight",), 4) for i in range(6)),
    )
    data = ({"id": payload, "split": payload, "sha256": payload, "records": payload},)
    inputs = {"model": payload, "data": payload, "columns": {payload: payload}}
    one = scores(layers=layers, data=data)
    two = scores(1, payload.replace("/", "").replace("\x00", ""), layers=layers, data=data)
    with arguments("tune", payload):
        folder = tune_run(tmp_path / "demo" / "tuning", arms=("top:30%",), chosen_by=one, inputs=inputs)
    write_json(folder / "comparison.json", {"base_loss": 6.0, "arms": [hostile_arm("top:30%"), hostile_arm(payload)]})
    write_json(folder / "parts" / "x-lr0.01-seed0.json", {"value": result([payload], 0, 1.0)})
    settings = {"inputs": inputs, "criteria": [payload], payload: payload}
    with pytest.raises(ValueError), open_run(tmp_path / "demo" / "scores", "score", settings):
        write_files(tmp_path / "demo" / "scores", one, two)
        raise ValueError(payload)
    page = checked(render(collect_runs(tmp_path / "demo"), ("report/heatmap.svg",)))
    assert page.words.count(shown) > 20
    assert any(payload[:3] in value for value in page.values("title") if value)
    compared = compare_run(tmp_path / "compared", one, two, labels=[payload, f"{payload} 2"])
    assert shown in checked(render(collect_runs(compared))).words


def write_files(folder, *several):
    from keylayers.scores import save

    for place, one in enumerate(several):
        save(one, folder / f"{place}.json")


def hostile_arm(policy):
    found = {"policy": policy, "losses": [2.0, 2.1], "learning_rate": 0.01, "layers": 2, "size_share": 0.3}
    return found | {"trainable": 10, "seconds": 1.0, "peak_bytes": 1}


def test_half_a_surrogate_pair_is_no_reason_to_fail(tmp_path):
    folder = score_run(tmp_path / "run", scores(), inputs={"model": "m\ud800", "data": "d"})
    written = write_report(folder)
    assert "m\ufffd" in written.page.read_text(encoding="utf-8")


def test_many_experts_stay_below_two_megabytes(tmp_path):
    layers = [
        Layer(f"model.layers.{b}.mlp.experts[{e}]", b, f"mlp.experts[{e}]", (f"l{b}.experts[{e}]",), 10)
        for b in range(48)
        for e in range(128)
    ]
    several = [scores(i, name, layers=layers) for i, name in enumerate(("path_integral", "delta_norm"))]
    html = render(collect_runs(score_run(tmp_path / "run", *several)))
    page = checked(html)
    assert "Too many layers for this page" in page.words and "more layers in path_integral.json" in page.words


def test_a_large_dense_model_is_shown_whole(tmp_path):
    kinds = [f"mlp.kind{k}" for k in range(7)]
    layers = [Layer(f"l{b}.{k}", b, k, (f"l{b}.{k}.w",), 10) for b in range(80) for k in kinds]
    html = render(collect_runs(score_run(tmp_path / "run", scores(layers=layers))))
    checked(html)
    assert len(re.findall(r'<b class="c\d+', html)) == 560


def test_a_report_is_written_whole_with_its_plots(tmp_path):
    written = write_report(demo_runs(tmp_path / "demo"))
    assert written.page == tmp_path / "demo" / "report.html"
    page = checked(written.page.read_text(encoding="utf-8"))
    links = [value for tag, name, value in page.attributes if name == "href"]
    assert sorted(links) == sorted(str(plot.relative_to(tmp_path / "demo")) for plot in written.plots)
    assert all(plot.stat().st_size > 1000 for plot in written.plots)
    elsewhere = write_report(tmp_path / "demo", tmp_path / "page.html")
    assert elsewhere.page == tmp_path / "page.html" and elsewhere.plots[0].parent == tmp_path / "page"


def test_the_same_run_gives_the_same_page(tmp_path):
    folder = score_run(tmp_path / "run")
    assert write_report(folder).page.read_bytes() == write_report(folder).page.read_bytes()


def test_plots_that_fail_are_said_and_the_page_is_whole(tmp_path, monkeypatch, capsys):
    from keylayers.report import plots

    def broken(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(plots, "_heatmap", broken)
    written = write_report(score_run(tmp_path / "run"))
    assert written.plots == () and "could not be drawn (RuntimeError: no fonts)" in capsys.readouterr().err
    assert 'href="' not in written.page.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        write_report(score_run(tmp_path / "run"), tmp_path / "file" / "page.html")
