"""Commands that print what exists: layers, criteria, agreement of score files."""

from pathlib import Path

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


def show_agreement(files: list[Path], top: str, acted: str, plot: Path | None) -> None:
    """`keylayers compare`: agreement with chance levels; two rankings in detail, more as a table."""
    from keylayers.scores import agreement, agreements
    from keylayers.scores.files import load

    paths = [found for file in files for found in _score_files(file)]
    if len(paths) < 2:
        raise BadInput(f"compare needs two or more score files, found {len(paths)} in {', '.join(map(str, files))}.")
    scores = [load(path) for path in paths]
    labels = _labels(paths)
    share = _share(top)
    if len(scores) == 2:
        say(str(agreement(scores[0], scores[1], share, acted=acted, labels=(labels[0], labels[1]))))  # type: ignore[arg-type]
    else:
        say(str(agreements(scores, share, acted=acted, labels=labels)))  # type: ignore[arg-type]
    if plot is not None:
        from keylayers.report.heatmap import heatmap

        heatmap(scores, labels, plot)
        say(f"picture in {plot}")


def _score_files(place: Path) -> list[Path]:
    """A score file, or those in a scoring run."""
    if place.is_dir():
        from keylayers.criteria import CRITERIA

        return [place / f"{name}.json" for name in CRITERIA if (place / f"{name}.json").is_file()]
    return [place]


def _labels(paths: list[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart."""
    for depth in range(1, 8):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{index}: {path}" for index, path in enumerate(paths)]


def _share(text: str) -> float:
    try:
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise BadInput(f"--top {text}: expected a share such as 75% or 0.75.") from error
    if not 0 < share < 1:
        raise BadInput(f"--top {text}: expected a share between 0% and 100%.")
    return share
