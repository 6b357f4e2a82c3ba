"""Data: sources of any common format as records, their splits, token sequences and batches.

Torch-free but for `keylayers.data.batches`, which is imported by its own name.
"""

from keylayers.data.formats import FORMATS, load_records
from keylayers.data.records import Record, Records, Skipped, Turn
from keylayers.data.splits import Splits, assert_disjoint, load_splits, split
from keylayers.data.tokenisation import Examples, TruncationReport, tokenise

__all__ = [
    "FORMATS",
    "Examples",
    "Record",
    "Records",
    "Skipped",
    "Splits",
    "TruncationReport",
    "Turn",
    "assert_disjoint",
    "load_records",
    "load_splits",
    "split",
    "tokenise",
]
