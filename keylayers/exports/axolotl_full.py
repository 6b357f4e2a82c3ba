"""axolotl, full fine-tuning: YAML with unfrozen_parameters, one anchored pattern per parameter.

The rule is restated from axolotl-ai-cloud/axolotl, src/axolotl/utils/freeze.py (freeze_layers_except,
LayerNamePattern): a pattern is matched at the start of each parameter's name; a dot that no `+` follows is escaped, so
that `.*` means "a dot, any number of times" and an escaped dot matches nothing; `[a:b]` at the end keeps the gradient
of these rows alone. Names of fused parameters are those of transformers 5 (`experts.gate_up_proj`). Blocks can be
expressed with their norms, and single experts as rows; those have no gradient outside their rows, but share the
optimiser's state and its weight decay, which is why that is set to 0 there.
"""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from keylayers.exports.loaded import require_loadable
from keylayers.exports.lora import mapping_of, strings
from keylayers.exports.target import CannotExpress, ExportSettings, Target
from keylayers.exports.yaml_format import yaml_text
from keylayers.layers.structure import parameters_of
from keylayers.scores.selection import Selection

FILE = "axolotl.yaml"


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """Full fine-tuning of the selected layers' parameters alone."""
    require_loadable(model, "axolotl", generates=False)
    patterns = list(_patterns(name for layer in selection.chosen for name in layer.parameters))
    values: dict[str, object] = {"base_model": settings.model, "unfrozen_parameters": patterns}
    notes = ["merge into your configuration; without adapter, which would undo this"]
    if any(pattern.endswith("]") for pattern in patterns):
        notes.append("rows outside [a:b] have no gradient, but weight decay would move them")
        values["weight_decay"] = 0.0
    return {FILE: yaml_text(values, selection, notes)}


def _patterns(names: Iterable[str]) -> Iterable[str]:
    """One pattern per parameter, slices of one side by side joined to ranges of rows."""
    rows: dict[str, list[int]] = {}
    for name in names:
        whole, _, index = name.partition("[")
        rows.setdefault(whole, [])
        if index:
            rows[whole].append(int(index.removesuffix("]")))
    for whole, chosen in rows.items():
        exact = f"^{'.'.join(re.escape(part) for part in whole.split('.'))}$"  # axolotl escapes the dots itself
        if not chosen:
            yield exact
        for start, end in _ranges(sorted(set(chosen))):
            yield f"{exact}[{start}:{end}]"


def _ranges(rows: list[int]) -> Iterable[tuple[int, int]]:
    """Runs of consecutive rows as (first, last + 1)."""
    starts = [row for row in rows if row - 1 not in rows]
    ends = [row + 1 for row in rows if row + 1 not in rows]
    return zip(starts, ends, strict=True)


def read_back(model: nn.Module, files: Mapping[str, str]) -> set[str]:
    """Parameters axolotl would leave trainable; where only rows of one train, its slices."""
    given = mapping_of(files, FILE)
    if given.get("adapter"):
        raise CannotExpress("axolotl trains adapters where `adapter` is set, and unfrozen_parameters mean nothing.")
    patterns = [
        _parsed(pattern) for pattern in strings(given.get("unfrozen_parameters"), "unfrozen_parameters", "axolotl")
    ]
    seen: set[int] = set()
    found: set[str] = set()
    for name, parameter in parameters_of(model).items():
        if id(parameter) in seen:
            continue  # tied: axolotl sees the first name alone
        seen.add(id(parameter))
        matching = [rows for expression, rows in patterns if expression.match(name)]
        if not patterns:  # an empty list is no list: nothing is frozen
            found.add(name)
        elif any(rows is not None for rows in matching):
            found |= {f"{name}[{row}]" for rows in matching if rows is not None for row in _within(rows, parameter)}
        elif matching:
            found.add(name)
    return found


def _parsed(pattern: str) -> tuple[re.Pattern[str], tuple[int, int | None] | None]:
    """The expression axolotl compiles and its rows [start, end); None for all rows."""
    body, rows = pattern, None
    if ranged := re.fullmatch(r"(.+)\[(\d*)(?:(:)(\d*))?\]", pattern):
        start, colon, end = ranged.group(2), ranged.group(3), ranged.group(4)
        if colon or start:
            body = ranged.group(1)
            first = int(start) if start else 0
            rows = (first, first + 1) if not colon else (first, int(end) if end else None)
    return re.compile(re.sub(r"\.(?!\+)", r"\\.", body)), rows


def _within(rows: tuple[int, int | None], parameter: nn.Parameter) -> range:
    start, end = rows[0], len(parameter) if rows[1] is None else rows[1]
    if start >= end or end > len(parameter):
        raise CannotExpress(f"axolotl refuses rows {start}:{end} of a parameter that has {len(parameter)}.")
    return range(start, end)


def nearest(model: nn.Module, selection: Selection) -> Selection:
    """The selection itself: any set of parameters can be said."""
    return selection


TARGET = Target(
    name="axolotl-full",
    unit="parameters",
    render=render,
    read_back=read_back,
    nearest=nearest,
    usage="merge axolotl.yaml into your configuration, which has no `adapter`, then: axolotl train CONFIG",
)
