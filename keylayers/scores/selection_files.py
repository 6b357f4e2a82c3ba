"""Selection files: a Selection as versioned JSON, one layer per line, exact in a round trip."""

import os

import numpy as np

from keylayers.errors import BadSelection, KeylayersError
from keylayers.files.strict_json import SEAL, read_json, sealed_text, write_atomically
from keylayers.scores.layer_json import LAYER_FIELDS, layer_fields, read_layer
from keylayers.scores.selection import Selection

FORMAT = "keylayers/selection/1"
REMEDY = "`save_selection` writes such files; write it again, or use a version that knows this format"
FIELDS = ("format", "policy", "layers", "roles", "allow_empty", "allow_total", "provenance", SEAL)


def save_selection(selection: Selection, path: str | os.PathLike[str]) -> None:
    """Write the selection, whole or not at all. Raises BadInput if the folder cannot be written."""
    count = len(selection.layers)
    weights = [None] * count if selection.weights is None else selection.weights.tolist()
    fields = {
        "format": FORMAT,
        "policy": selection.policy,
        "layers": [
            layer_fields(layer) | {"chosen": chosen, "weight": weight}
            for layer, chosen, weight in zip(selection.layers, selection.mask.tolist(), weights, strict=True)
        ],
        "roles": None if selection.roles is None else {role: list(names) for role, names in selection.roles.items()},
        "allow_empty": selection.allow_empty,
        "allow_total": selection.allow_total,
        "provenance": dict(selection.provenance),
    }
    write_atomically(path, sealed_text(fields))


def load_selection(path: str | os.PathLike[str]) -> Selection:
    """The selection in a file.

    Raises:
        BadInput: if it is not whole, strict JSON. BadSelection or UnknownName: if it is, but no sound selection file;
            the text names the file, the field and what was expected.
    """
    top = read_json(path, (FORMAT, REMEDY), BadSelection)
    top.only(FIELDS)
    rows = top.records("layers")
    for row in rows:
        row.only((*LAYER_FIELDS, "chosen", "weight"))
    weighted = [row for row in rows if row.has("weight")]
    if weighted and len(weighted) != len(rows):
        next(row for row in rows if not row.has("weight")).refuse("weight", "a number, as other layers have one")
    roles = top.record("roles") if top.has("roles") else None
    try:
        selection = Selection(
            layers=tuple(read_layer(row) for row in rows),
            mask=np.array([row.flag("chosen") for row in rows], dtype=np.bool_),
            policy=top.text("policy"),
            provenance=top.table("provenance") if top.has("provenance") else {},
            weights=np.array([row.real("weight") for row in rows]) if weighted else None,
            roles=None if roles is None else {role: roles.texts(role) for role in roles.values},
            allow_empty=top.flag("allow_empty") if top.has("allow_empty") else False,
            allow_total=top.flag("allow_total") if top.has("allow_total") else False,
        )
    except KeylayersError as problem:
        raise (problem if str(path) in str(problem) else BadSelection(f"{path}: {problem}")) from problem
    top.check_seal()
    return selection
