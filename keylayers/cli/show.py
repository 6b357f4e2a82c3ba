"""Commands that print what exists: layers, criteria, agreement of score files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keylayers.cli.options import share as share_of
from keylayers.cli.terminal import quiet_libraries, say, table
from keylayers.errors import BadInput


def show_layers(source: str, granularity: str, trust_remote_code: bool) -> None:
    """`keylayers layers`: one line per layer, totals last."""
    from keylayers.errors import UnknownName
    from keylayers.layers.layer import GRANULARITIES

    if granularity not in GRANULARITIES:
        raise UnknownName("granularity", granularity, GRANULARITIES)
    quiet_libraries()
    from keylayers.layers import named_layers, total_size
    from keylayers.models import load_shape

    found = named_layers(load_shape(source, trust_remote_code=trust_remote_code), granularity)
    rows = [
        (layer.name, "-" if layer.block is None else str(layer.block), layer.kind, f"{layer.size:,}") for layer in found
    ]
    say(table(("layer", "block", "kind", "parameters"), rows))
    say(f"{len(found)} layers of granularity {granularity}, {total_size(found):,} parameters")


def show_criteria() -> None:
    """`keylayers criteria`."""
    from keylayers.criteria import CRITERIA

    say(table(("criterion", "what it computes"), list(CRITERIA.items())))


def show_agreement(
    files: list[Path], top: str, acted: str, plot: Path | None, out: Path | None = None, fresh: bool = False
) -> None:
    """`keylayers compare`: agreement with chance levels; two rankings in detail, more as a table."""
    if any(leagues := [_league_figures(file) for file in files]):
        return _show_leagues(files, leagues)
    from keylayers.scores import agreement, agreements, load_scores
    from keylayers.scores.hub import score_files

    paths = [found for file in files for found in (score_files(file) if file.is_dir() else [file])]
    if len(paths) < 2:
        raise BadInput(f"compare needs two or more score files, found {len(paths)} in {', '.join(map(str, files))}.")
    scores = [load_scores(path) for path in paths]
    labels = _labels(paths)
    share = share_of(top, "--top", "a share such as 75% or 0.75")
    table = agreements(scores, share, acted=acted, labels=labels)  # type: ignore[arg-type]
    if len(scores) == 2:
        say(str(agreement(scores[0], scores[1], share, acted=acted, labels=(labels[0], labels[1]))))  # type: ignore[arg-type]
    else:
        say(str(table))
    if plot is not None:
        from keylayers.report.heatmap import draw_heatmap

        draw_heatmap(scores, labels, plot)
        say(f"picture in {plot}")
    settings = {
        "files": paths,
        "labels": labels,
        "scores": [one.sha256 for one in scores],
        "top": share,
        "acted": acted,
    }
    _store_comparison(settings, scores, table, out, fresh)


def _league_figures(place: Path) -> Path | None:
    """The figures of a league in this folder or file, if it holds one; told without what playing a league imports."""
    file = place / "league.json" if os.path.isdir(place) else place
    if not os.path.isfile(file):
        return None
    with file.open("rb") as opened:
        return file if b'"games"' in opened.read(64) else None  # the first key; `write_json` keeps the order


def _show_leagues(files: list[Path], figures: list[Path | None]) -> None:
    """Whether two leagues rank the ways of choosing layers alike."""
    if absent := [file for file in files if not os.path.exists(file)]:
        raise BadInput(f"compare: {absent[0]}: no such file or folder; give the run of a league, or its league.json.")
    if len(files) != 2 or None in figures:
        raise BadInput(
            f"compare: {', '.join(map(str, files))}: a league is compared with one other league: expected two runs of "
            "`keylayers league`, or their league.json."
        )
    quiet_libraries()
    from keylayers.league.agreement import COLUMNS, read_gains, rows

    first, second = (read_gains(file) for file in figures if file is not None)
    labels = _labels(files)
    say(f"Do they rank the ways of choosing layers alike, by the gain recovered? {labels[0]} / {labels[1]}")
    say(table(COLUMNS, rows(first, second)))
    say(
        "Spearman's correlation of the two leagues, and of two seeds of each, the mean over pairs: what its own noise "
        "leaves. p two-sided, by chance alone; rough, since ways are no independent sample"
    )


def _store_comparison(
    settings: dict[str, Any], scores: Sequence[Any], table: Any, out: Path | None, fresh: bool
) -> None:
    """The comparison as a run folder with copies of the scores, and its report."""
    from keylayers.cli.report import end_with_report
    from keylayers.files.atomic import make_folder
    from keylayers.runs import digest, note, open_run
    from keylayers.scores import save

    folder = out or Path("runs") / f"compare-{digest(settings)[:10]}"
    try:
        with open_run(folder, "compare", settings, fresh=fresh) as run:
            make_folder(folder / "scores")
            for place, one in enumerate(scores, 1):
                save(one, folder / "scores" / f"{place:03d}.json")
            run.part("agreement", lambda: {"pairs": [_figures(pair) for pair in table.pairs]})
    except BadInput as error:
        if out is not None:
            raise
        note(f"the comparison is shown but not stored: {error}")  # nobody asked for a folder
        return
    end_with_report(folder)


def _figures(pair: Any) -> dict[str, Any]:
    from keylayers.scores.rank_agreement import NULLS

    acted = pair.of_acted
    return {
        "labels": pair.labels,
        "size": acted.size,
        "shared": acted.shared,
        "jaccard": acted.jaccard,
        "expected_jaccard": acted.expected,
        "kuncheva": acted.kuncheva,
        "spearman": pair.spearman.value,
        "p_values": {null: acted.p_value(null) for null in NULLS},
    }


def _labels(paths: list[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    for depth in range(1, 8):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{index}: {path}" for index, path in enumerate(paths)]
