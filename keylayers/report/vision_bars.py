"""Pictures of what a run on a network of images found: epochs, skips, suspicion, classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from keylayers.report.heads import Bar, Bars
from keylayers.report.words import number, plural, share, whole

MOST = 24
"""Lines of a picture; of more epochs every second, third, ... is shown."""
BINS = 12


def epochs(losses: Sequence[float], watched: Sequence[float], best: int) -> Bars:
    """Accuracy under attack on calibration images, by epoch."""
    every = -(-len(watched) // MOST)
    shown = sorted({*range(0, len(watched), every), best, len(watched) - 1})
    rows = tuple(
        Bar(f"epoch {one + 1}", watched[one], f"{share(watched[one])}, loss {number(losses[one])}", one == best)
        for one in shown
    )
    words = "Accuracy under attack on calibration images, and the loss of training; the best epoch is marked."
    return Bars("Epoch by epoch", words, "After", rows)


def blame(scores: Mapping[str, float], chosen: Sequence[str]) -> Bars:
    """Scores of all skip connections, those that blame none as no bar."""
    order, most = sorted(scores, key=lambda name: -scores[name]), max(scores.values())
    rows = tuple(
        Bar(name, max(0.0, scores[name] / most) if most > 0 else 0.0, number(scores[name]), name in chosen)
        for name in order
    )
    words = "How sharply answers fall as a skip connection is turned down; what was turned down is marked."
    return Bars("What is blamed", words, "Skip", rows)


def by_suspicion(suspicion: Sequence[float], flagged: Sequence[bool]) -> Bars:
    """A histogram; bins in which most are flagged are marked."""
    values, flags = np.asarray(suspicion, float), np.asarray(flagged, bool)
    known = np.isfinite(values)
    values, flags = values[known], flags[known]
    counts, edges = np.histogram(values, BINS)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1)
    bad = np.bincount(place[flags], minlength=BINS)
    rows = tuple(
        Bar(
            f"{number(low, 3)} to {number(high, 3)}",
            count / max(1, counts.max()),
            whole(count) + (f", {whole(some)} flagged" if some else ""),
            bool(2 * some > count),
        )
        for low, high, count, some in zip(edges[:-1], edges[1:], counts, bad, strict=True)
    )
    words = f"{plural(len(values), 'image')} by how unlike its class each is; where most are flagged, marked."
    return Bars("How suspicious the images are", words, "Suspicion", rows)


def by_class(classes: Sequence[int], flagged: Sequence[bool]) -> Bars:
    """Share flagged of those taken for each class; the class with the largest is marked where it stands out."""
    own, flags = np.asarray(classes, int), np.asarray(flagged, bool)
    shares = {int(one): float(flags[own == one].mean()) for one in np.unique(own)}
    first, *others = sorted(shares, key=lambda one: -shares[one])
    alone = bool(shares[first] > 2 * max((shares[one] for one in others), default=0.0))
    rows = tuple(
        Bar(f"class {one}", part, f"{whole((flags & (own == one)).sum())} of {whole((own == one).sum())}",
            alone and one == first)
        for one, part in shares.items()
    )  # fmt: skip
    words = "Flagged, of the images taken for each class. A trigger brings its images into one class: look there first."
    return Bars("By class", words, "Taken for", rows)
