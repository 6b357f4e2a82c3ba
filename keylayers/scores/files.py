"""Score files: LayerScores as versioned JSON, one layer per line, exact in a round trip."""

import os

import numpy as np

from keylayers.errors import BadScores, KeylayersError
from keylayers.files.strict_json import SEAL, Record, read_json, sealed_text, write_atomically
from keylayers.scores.layer_json import LAYER_FIELDS, layer_fields, read_layer
from keylayers.scores.provenance import Provenance
from keylayers.scores.scores import LayerScores, shown_names

FORMAT = "keylayers/scores/1"
REMEDY = "`keylayers score` writes such files; run it again, or use a version that knows this format"
FIELDS = ("format", "criterion", "granularity", "ordinal", "model", "layers", "repeats", "groups", "provenance", SEAL)
PROVENANCE_FIELDS = ("data", "settings", "seed", "versions", "seconds", "device")


def save(scores: LayerScores, path: str | os.PathLike[str]) -> None:
    """Write the scores, whole or not at all. Raises BadInput if the folder cannot be written."""
    intervals = [None] * len(scores.layers) if (found := scores.interval()) is None else found.tolist()
    origin = scores.provenance
    fields = {
        "format": FORMAT,
        "criterion": scores.criterion,
        "granularity": scores.granularity,
        "ordinal": scores.ordinal,
        "model": origin.model,
        "layers": [
            layer_fields(layer) | {"score": score, "interval": interval}
            for layer, score, interval in zip(scores.layers, scores.values.tolist(), intervals, strict=True)
        ],
        "repeats": None if scores.repeats is None else scores.repeats.tolist(),
        "groups": None if scores.groups is None else {name: row.tolist() for name, row in scores.groups.items()},
        "provenance": {name: getattr(origin, name) for name in PROVENANCE_FIELDS} | {"data": list(origin.data)},
    }
    write_atomically(path, sealed_text(fields))


def load(path: str | os.PathLike[str]) -> LayerScores:
    """The scores in a file.

    Raises:
        BadInput: if it is not whole, strict JSON. BadScores or UnknownName: if it is, but not a sound score file; the
            text names the file, the field and what was expected; so it does where the sha256 is of other content.
    """
    top = read_json(path, (FORMAT, REMEDY), BadScores)
    top.only(FIELDS)
    rows = top.records("layers")
    for row in rows:
        row.only((*LAYER_FIELDS, "score", "interval"))
    if not rows:
        top.refuse("layers", "at least one layer")
    repeats = _repeats(top, len(rows))
    try:
        scores = LayerScores(
            layers=tuple(read_layer(row) for row in rows),
            values=np.array([row.real("score") for row in rows], dtype=np.float64),
            criterion=top.text("criterion"),
            granularity=top.text("granularity"),
            provenance=read_provenance(top),
            repeats=repeats,
            groups=_groups(top, len(rows)),
            bounds=_intervals(top, rows) if repeats is None or len(repeats) < 2 else None,
            ordinal=top.flag("ordinal") if top.has("ordinal") else False,
        )
    except KeylayersError as problem:
        raise _naming_file(problem, path) from problem
    _check_intervals(scores, rows)
    top.check_seal()
    return scores


def read_provenance(top: Record) -> Provenance:
    """The provenance of a score file, with the `model` of its head."""
    model = top.table("model") if top.has("model") else {}
    if not top.has("provenance"):
        return Provenance(model=model)
    record = top.record("provenance")
    record.only(PROVENANCE_FIELDS)
    return Provenance(
        model=model,
        data=tuple(dict(one.values) for one in record.records("data")) if record.has("data") else (),
        settings=record.table("settings") if record.has("settings") else {},
        seed=_seed(record) if record.has("seed") else None,
        versions=record.table("versions") if record.has("versions") else {},
        seconds=record.real("seconds") if record.has("seconds") else None,
        device=record.text("device") if record.has("device") else None,
    )


def _seed(record: Record) -> int:
    value = record.number("seed")
    return value if isinstance(value, int) else record.refuse("seed", "a whole number")


def _repeats(top: Record, count: int) -> np.ndarray | None:
    if not top.has("repeats"):
        return None
    value = top.values["repeats"]
    if not isinstance(value, list) or not value:
        top.refuse("repeats", "null, or one list of scores per repeat")
    rows = Record(f"{top.where}, repeats", {str(i): row for i, row in enumerate(value)}, top.error)
    return _floats(top, "repeats", [rows.numbers(str(i), count) for i in range(len(value))])


def _groups(top: Record, count: int) -> dict[str, np.ndarray] | None:
    if not top.has("groups"):
        return None
    record = top.record("groups")
    return {name: _floats(record, name, record.numbers(name, count)) for name in record.values}


def _intervals(top: Record, rows: list[Record]) -> np.ndarray | None:
    stated = [row for row in rows if row.has("interval")]
    if not stated:
        return None
    if len(stated) != len(rows):
        missing = [str(row.values.get("name")) for row in rows if not row.has("interval")]
        raise BadScores(
            f"{top.where}: {len(stated)} of {len(rows)} layers have an interval; give one for every layer or for none "
            f"(without: {shown_names(missing)})"
        )
    return _floats(top, "interval", [row.numbers("interval", 2) for row in rows])


def _floats(record: Record, field: str, values: list) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        record.refuse(field, "numbers that fit in 64 bits")


def _check_intervals(scores: LayerScores, rows: list[Record]) -> None:
    """Raises BadScores where a written interval is not that of the written repeats: the file was changed by hand."""
    expected = scores.interval()
    for row, bounds in zip(rows, expected if expected is not None else [None] * len(rows), strict=True):
        if not row.has("interval"):
            continue
        if bounds is None or not np.allclose(row.numbers("interval", 2), bounds, rtol=1e-6, atol=1e-300):
            row.refuse(
                "interval", "the 95 % interval of the repeats in the same file; set it to null and it is computed"
            )


def _naming_file(problem: KeylayersError, path: str | os.PathLike[str]) -> KeylayersError:
    """The same complaint with the file in its text, where it is not there yet."""
    return problem if str(path) in str(problem) else BadScores(f"{path}: {problem}")
