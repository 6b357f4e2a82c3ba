"""Measures: what a model does on held-out data, with intervals.

Torch-free; what needs torch (`loss`, `accuracy`, `attacks`, `robustness` and others) is imported by its own name.
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
