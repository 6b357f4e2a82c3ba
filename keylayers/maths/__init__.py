"""Arrays in, arrays out: the formulas, without a model. Modules that need torch are imported by name, not from here."""

from keylayers.maths.overlap import OverlapLaw, expected_jaccard, jaccard, kuncheva_index, random_overlap_law
from keylayers.maths.overlap_nulls import depth_law, stratified_law
from keylayers.maths.ranks import (
    Correlation,
    average_ranks,
    expected_rank_biased_overlap,
    kendall_tau,
    rank_biased_overlap,
    spearman,
)
from keylayers.maths.stability import SetStability, holm, set_stability

__all__ = [
    "Correlation",
    "OverlapLaw",
    "SetStability",
    "average_ranks",
    "depth_law",
    "expected_jaccard",
    "expected_rank_biased_overlap",
    "holm",
    "jaccard",
    "kendall_tau",
    "kuncheva_index",
    "random_overlap_law",
    "rank_biased_overlap",
    "set_stability",
    "spearman",
    "stratified_law",
]
