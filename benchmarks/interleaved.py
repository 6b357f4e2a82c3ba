"""CPU seconds of several ways to do a thing, in turn, so that what the machine does meanwhile falls on all alike."""

import time
from collections.abc import Callable, Mapping


def cpu_seconds(ways: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of this process per repetition, by name; a first round is a warm-up and left out."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repetitions + 1):
        for name, work in ways.items():
            start = time.process_time()
            work()
            if round_:
                times[name].append(time.process_time() - start)
    return times


def cpu_ratios(above: list[float], below: list[float]) -> list[float]:
    """Of each repetition, ascending."""
    return sorted(one / other for one, other in zip(above, below, strict=True))
