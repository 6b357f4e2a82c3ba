"""`keylayers verify`: whether what a run stored still is what was written."""

from collections.abc import Sequence
from pathlib import Path

from keylayers.cli.terminal import say

SHOWN = 5
"""Files without a digest that are named."""


def run_verify(places: Sequence[Path]) -> int:
    """Names every damaged file; 1 if there is one, else 0."""
    from keylayers.runs.verification import verify

    damaged = False
    for place in places:
        found = verify(place)
        for file, what in found.damaged:
            say(f"damaged: {what if str(file) in what else f'{file} {what}'}")
        say(f"{place}: {len(found.whole)} files are what was written, {len(found.damaged)} are damaged")
        if found.unsealed:
            names = ", ".join(
                str(file.relative_to(place) if file != place else file) for file in found.unsealed[:SHOWN]
            )
            more = f" and {len(found.unsealed) - SHOWN} more" if len(found.unsealed) > SHOWN else ""
            say(f"not checked, for they carry no sha256: {names}{more}")
        damaged = damaged or bool(found.damaged)
    return 1 if damaged else 0
