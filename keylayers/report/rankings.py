"""Rankings as a page shows them: a map, a table with intervals and tiers, and what was chosen by them."""

from collections import Counter
from dataclasses import dataclass

from keylayers.report.choice import Choice
from keylayers.report.collect import CUT, Collected, Ranking
from keylayers.report.shapes import Map, Scale, heat, scale
from keylayers.report.words import figures, number, plural, policy_words, spans, whole
from keylayers.scores import LayerScores
from keylayers.scores.rank_agreement import top_count
from keylayers.scores.tiers import Tier, split_tiers

MOST_CELLS, MOST_ROWS, MOST_ROWS_EACH = 6000, 1600, 400
"""Heatmap cells and ranking rows of a whole page, so that it stays below 2 MB; the score files have the rest."""


@dataclass(frozen=True)
class Row:
    """One layer of a ranking; places are percentages of the axis."""

    rank: int
    block: str
    kind: str
    """Name inside the block; the full name where two layers of a block share it."""
    name: str
    score: str
    dot: float
    bar: tuple[float, float] | None
    bounds: str
    tier: Tier | None
    chosen: bool
    size: str


@dataclass(frozen=True)
class RankingView:
    """A ranking as a map and a table."""

    title: str
    criterion: str
    file: str
    map: Map | None
    rows: tuple[Row, ...]
    left_out: int
    """Layers that the table leaves to the score file."""
    axis: Scale
    zero: float | None
    tiers: str | None
    chosen: str
    """What the marked layers are."""


@dataclass(frozen=True)
class KindRow:
    """How many layers of a kind were chosen, and in which blocks."""

    kind: str
    count: int
    total: int
    percent: float
    blocks: str


def ranking_views(collected: Collected, choice: Choice | None) -> tuple[RankingView, ...]:
    """Every ranking, first the one that the choice was made by; layers beyond the page's room are only counted."""
    main = choice.ranking if choice else None
    others = [one for one in collected.rankings if one is not main]
    if main is not None and collected.runs[0].command != "compare":
        others.sort(key=lambda one: one.label != main.label)  # the same criterion on other data first
    rankings = others if main is None else [main, *others]
    cells, rows = MOST_CELLS, MOST_ROWS
    found = []
    for ranking in rankings:
        view = _ranking_view(collected, ranking, choice, cells, min(rows, MOST_ROWS_EACH))
        cells -= len(view.map.cells) if view.map else 0
        rows -= len(view.rows)
        found.append(view)
    return tuple(found)


def kind_rows(choice: Choice) -> tuple[KindRow, ...]:
    """The chosen layers by kind."""
    if choice.ranking is None:
        return ()
    named, found = set(choice.names), []
    for kind in dict.fromkeys(layer.kind for layer in choice.ranking.scores.layers):
        every = [layer for layer in choice.ranking.scores.layers if layer.kind == kind]
        mine = [layer for layer in every if layer.name in named]
        blocks = {layer.block for layer in mine if layer.block is not None}
        found.append(KindRow(kind, len(mine), len(every), 100 * len(mine) / len(every), spans(blocks) or "–"))
    return tuple(found)


def why(choice: Choice) -> str:
    """What the choice was made by, and how clear its edge is."""
    if choice.ranking is None:
        return f"{policy_words(choice.policy).capitalize()}: chosen without scores."
    scores = choice.ranking.scores
    first, second = _edge(scores, choice)
    by = f"Policy {choice.policy}, by the scores of {scores.criterion} ({choice.ranking.file}): "
    if first is None or second is None:
        return f"{by}{plural(len(choice.names), 'layer')}."
    return (
        f"{by}{plural(len(choice.names), 'layer')}. The last one inside is {scores.layers[first].name} "
        f"({number(float(scores.values[first]))}), the first one outside {scores.layers[second].name} "
        f"({number(float(scores.values[second]))})."
    )


def _ranking_view(collected: Collected, ranking: Ranking, choice: Choice | None, cells: int, rows: int) -> RankingView:
    scores = ranking.scores
    names, said = _marked(collected, ranking, choice)
    chosen, count = frozenset(names), len(names)
    if collected.runs[0].command == "compare" and collected.runs[0].setting("acted") == "bottom":
        count = len(scores.layers) - count  # the question of the tiers is still who is at the top
    sorted_in = split_tiers(scores, max(1, min(count, len(scores.layers))))
    bounds = scores.interval()
    axis = scale([*scores.values.tolist(), 0.0, *([] if bounds is None else bounds.ravel().tolist())], most=4)
    places = Counter((layer.block, layer.kind) for layer in scores.layers)
    table = []
    for rank, index in enumerate(scores.order()[:rows].tolist(), 1):
        layer, low_high = scores.layers[index], None if bounds is None else bounds[index].tolist()
        table.append(
            Row(
                rank=rank,
                block="–" if layer.block is None else str(layer.block),
                kind=layer.kind if places[layer.block, layer.kind] == 1 else layer.name,
                name=layer.name,
                score=figures(float(scores.values[index])),
                dot=axis.at(float(scores.values[index])),
                bar=None if low_high is None else axis.span(*low_high),
                bounds="" if low_high is None else f"{number(low_high[0], 3)} to {number(low_high[1], 3)}",
                tier=sorted_in.of[index] if sorted_in else None,
                chosen=layer.name in chosen,
                size=whole(layer.size),
            )
        )
    return RankingView(
        title=_title(collected, ranking),
        criterion=scores.criterion,
        file=ranking.file,
        map=heat(scores, chosen, sorted_in) if len(scores.layers) <= cells else None,
        rows=tuple(table),
        left_out=len(scores.layers) - len(table),
        axis=axis,
        zero=axis.at(0.0),
        tiers=None if sorted_in is None else str(sorted_in),
        chosen=said,
    )


def _marked(collected: Collected, ranking: Ranking, choice: Choice | None) -> tuple[list[str], str]:
    """The layers to mark in a ranking, and what they are."""
    order = [layer.name for layer in ranking.scores.ranking()]
    run = collected.runs[0]
    if run.command == "compare":
        share = run.setting("top")
        count = top_count(share if isinstance(share, float) else CUT, len(order))
        top = run.setting("acted") != "bottom"
        return (order[:count], f"the top {count}") if top else (order[count:], f"the bottom {len(order) - count}")
    if choice is not None and choice.ranking is ranking:
        return list(choice.names), "trained by the first arm" if choice.trained else f"the top {len(choice.names)}"
    count = len(choice.names) if choice is not None else 1  # as many as the choice, to be compared with it
    return order[:count], f"the top {min(count, len(order))}"


def _title(collected: Collected, ranking: Ranking) -> str:
    """The ranking's label, with its data where rankings of several data sets stand side by side."""
    if collected.runs[0].command == "compare":
        return ranking.label
    data = {_data(one.scores) for one in collected.rankings}
    return f"{ranking.label} on {_data(ranking.scores)}" if len(data) > 1 and _data(ranking.scores) else ranking.label


def _data(scores: LayerScores) -> str:
    return str(scores.provenance.data[0].get("id", "")) if scores.provenance.data else ""


def _edge(scores: LayerScores, choice: Choice) -> tuple[int | None, int | None]:
    """The layers on both sides of the cut, where the choice is the top of the ranking."""
    order, count = scores.order().tolist(), len(choice.names)
    top = {scores.layers[index].name for index in order[:count]}
    if top != set(choice.names) or not 0 < count < len(order):
        return None, None
    return order[count - 1], order[count]
