"""The values that travel: scores of layers, selections of layers, the policies between them, agreement of rankings."""

from keylayers.scores.agreement_table import AgreementTable, agreements
from keylayers.scores.files import load, save
from keylayers.scores.hub import load_scores
from keylayers.scores.policies import select
from keylayers.scores.policy_text import PolicySpec, parse
from keylayers.scores.provenance import Provenance
from keylayers.scores.rank_agreement import Agreement, SetAgreement, agreement
from keylayers.scores.scores import LayerScores
from keylayers.scores.selection import Selection
from keylayers.scores.selection_files import load_selection, save_selection
from keylayers.scores.transfer import transferred

__all__ = [
    "Agreement",
    "AgreementTable",
    "LayerScores",
    "PolicySpec",
    "Provenance",
    "Selection",
    "SetAgreement",
    "agreement",
    "agreements",
    "load",
    "load_scores",
    "load_selection",
    "parse",
    "save",
    "save_selection",
    "select",
    "transferred",
]
