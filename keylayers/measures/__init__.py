"""Measures: what a model does on held-out data, with intervals.

Torch-free but for `keylayers.measures.loss` and `keylayers.measures.accuracy`, which are imported by their own names.
"""

from keylayers.measures.intervals import (
    Interval,
    PairedDifference,
    detectable_difference,
    paired_bootstrap,
    paired_difference,
    t_interval,
    wilson_interval,
)

__all__ = [
    "Interval",
    "PairedDifference",
    "detectable_difference",
    "paired_bootstrap",
    "paired_difference",
    "t_interval",
    "wilson_interval",
]
