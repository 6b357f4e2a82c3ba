"""The report in a real browser: what it shows, at desktop and phone width, without a network and without scripts."""

import json

import pytest

from keylayers.layers.layer import Layer
from keylayers.report.collect import collect_runs
from keylayers.report.page import render
from keylayers.runs import write_text
from tests.report.browser import browser, chromium
from tests.report.examples import LAYERS, compare_run, demo_runs, score_run, scores, tune_run
from tests.report.test_page import PAYLOADS, SECTIONS

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium on this machine (apt-get install chromium): the report is not opened"
)

CONTRAST = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest("svg, .hidden") || !node.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName}.${node.className}, ${node.textContent.slice(0, 20)}: ${ratio}`);
  }
  return [...new Set(poor)].slice(0, 5);
})()"""


@pytest.fixture(scope="module")
def page():
    with browser(PROGRAM) as opened:
        yield opened


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report of each kind of run, and of names and models that are hard to set."""
    place = tmp_path_factory.mktemp("reports")
    deep = [Layer(f"l{b}.{k}", b, f"mlp.kind_{k}", (f"l{b}.{k}.w",), 10) for b in range(80) for k in range(7)]
    usual = [*(one for one in deep if one.block < 32), LAYERS[-1]]
    experts = [Layer(f"l{b}.e{e}", b, f"mlp.experts[{e}]", (f"l{b}.{e}.w",), 10) for b in range(6) for e in range(64)]
    long = {"model": "organisation/" + "very_long_name_" * 12, "data": "/a/long/place/" + "x" * 200}
    hostile = [Layer(f"{i}{PAYLOADS[i]}", i, PAYLOADS[i], (f"{i}.w",), 4) for i in range(len(PAYLOADS))]
    made = {
        "score": score_run(place / "score"),
        "tune": tune_run(place / "tune"),
        "compare": compare_run(place / "compare", scores(), scores(1, "delta_norm")),
        "demo": demo_runs(place / "demo"),
        "unfinished": tune_run(place / "unfinished", finished=False),
        "usual": score_run(place / "usual", scores(layers=usual), scores(1, "delta_norm", layers=usual)),
        "deep": score_run(place / "deep", scores(layers=deep)),
        "experts": score_run(place / "experts", scores(layers=experts)),
        "long": tune_run(place / "long", inputs=long),
        "hostile": score_run(
            place / "hostile", scores(layers=hostile), inputs=dict.fromkeys(("model", "data"), PAYLOADS[2])
        ),
    }
    for folder in made.values():
        write_text(folder / "report.html", render(collect_runs(folder)))
    return {name: folder / "report.html" for name, folder in made.items()}


KINDS = ("score", "tune", "compare", "demo", "unfinished", "usual", "deep", "experts", "long", "hostile")


@pytest.mark.parametrize("width", [1280, 390, 320])
@pytest.mark.parametrize("kind", KINDS)
def test_it_fits_its_window_and_asks_for_nothing(page, reports, kind, width):
    page.open(reports[kind], width)
    assert page.value("innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("location.protocol") == "file:" and page.requests() == [reports[kind].as_uri()]
    assert page.value("document.scripts.length") == 0
    said = [event["method"] for event in page.events if "dialog" in event["method"] or "exception" in event["method"]]
    assert said == []
    assert not [event for event in page.events if event["method"] == "Log.entryAdded"]


@pytest.mark.parametrize("kind", list(SECTIONS))
def test_every_section_is_shown_with_its_heading(page, reports, kind):
    page.open(reports[kind], 1280)
    assert page.value("[...document.querySelectorAll('section')].map(one => one.id)") == SECTIONS[kind].split()
    heights = page.value("[...document.querySelectorAll('h1, h2')].map(one => one.getBoundingClientRect().height)")
    assert len(heights) == 1 + len(SECTIONS[kind].split()) and min(heights) > 10


def test_the_headline_figures_are_those_of_the_comparison(page, reports):
    stored = json.loads((reports["demo"].parent / "tuning" / "comparison.json").read_text())
    first, random = (sum(arm["losses"]) / len(arm["losses"]) for arm in stored["arms"][:2])
    page.open(reports["demo"], 1280)
    figures = page.value("[...document.querySelectorAll('.tiles .figure')].map(one => one.textContent)")
    assert figures[0] == f"{first:.4f}" and figures[1] == str(stored["arms"][0]["layers"])
    assert figures[3] == f"{first - random:.4f}".replace("-", "−")
    sentence = page.value("document.querySelector('h1').innerText")
    assert f"from {stored['base_loss']:.3f} to {first:.3f} nats" in sentence and f"reach only {random:.3f}" in sentence
    table = page.value("document.querySelector('#comparison table').innerText")
    assert all(arm["policy"] in table for arm in stored["arms"])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("kind", "layers"), [("score", len(LAYERS)), ("usual", 225), ("deep", 560)])
def test_the_heatmaps_have_a_visible_numbered_cell_per_layer(page, reports, kind, layers, width):
    page.open(reports[kind], width)
    maps = page.value(
        "[...document.querySelectorAll('.map')].map(map => [...map.querySelectorAll('b')].map(one => {"
        "const box = one.getBoundingClientRect(), clipped = one.scrollWidth > one.clientWidth;"
        "return [parseInt(one.textContent), box.left, box.top, box.width, box.height, clipped]}))"
    )
    assert len(maps) == (1 if kind == "deep" else 2)
    for cells in maps:
        assert sorted(cell[0] for cell in cells) == list(range(1, layers + 1))
        assert len({(cell[1], cell[2]) for cell in cells}) == layers  # none on top of another
        assert all(cell[3] >= 18 and cell[4] >= 18 and not cell[5] and cell[1] + cell[3] <= width for cell in cells)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_behind_it(page, reports, dark):
    for kind in ("demo", "unfinished"):
        page.open(reports[kind], 1280, dark=dark)
        assert page.value("getComputedStyle(document.body).backgroundColor") == (
            "rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)"
        )
        assert page.value(CONTRAST) == []


def test_it_prints(page, reports, tmp_path):
    page.open(reports["demo"], 1280)
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "page.pdf").stat().st_size > 20_000


def test_the_probe_finds_what_it_looks_for(page, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background:#fff'><p style='color:#ccc'>pale</p><div style='width:900px'>wide</div>"
        "<img src='https://example.org/x.png'><script>document.title = 'ran'</script>"
    )
    page.open(bad, 390)
    assert page.value("document.documentElement.scrollWidth") > 390
    assert page.value(CONTRAST) and page.value("document.scripts.length") == 1
    assert "https://example.org/x.png" in page.requests()
