"""What each command can and cannot do with a model, from what criteria, methods and targets declare, tried on it."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from keylayers import criteria
from keylayers.actions.finetuning import METHODS, check_method, is_quantised
from keylayers.actions.freezing import selected_parameters
from keylayers.criteria.protocol import NEEDS
from keylayers.doctor.guard import attached
from keylayers.doctor.probe import ModelUnderTest, layers_of, some
from keylayers.errors import KeylayersError
from keylayers.exports import TARGETS
from keylayers.exports.target import export
from keylayers.layers.layer import GRANULARITIES, Layer
from keylayers.scores import Selection, select
from keylayers.training.adapters import LoraSettings

Verdict = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class Ability:
    """One command and a model."""

    command: str
    verdict: Verdict
    why: str
    """What it works on, what it needs, or the reason why not."""


def abilities(patient: ModelUnderTest, layers: Sequence[Layer], selection: Selection) -> Iterator[Ability]:
    """Every command's verdict, as each is known; export and tuning are tried with this selection."""
    yield _listing(patient)
    yield from _scoring(patient)
    yield from _tuning(patient, layers)
    yield _reverting(patient)
    yield from _exporting(patient, selection)


def _listing(patient: ModelUnderTest) -> Ability:
    counts = {name: len(layers_of(patient.model, name)) for name in GRANULARITIES}
    present = [f"{count} {name}" for name, count in counts.items() if count]
    absent = [name for name, count in counts.items() if not count]
    left = f"; none of {', '.join(absent)}" if absent else ""
    return Ability("layers", "yes" if present else "no", (", ".join(present) or "nothing found") + left)


def _scoring(patient: ModelUnderTest) -> Iterator[Ability]:
    for name in criteria.CRITERIA:
        criterion, layers = criteria.get(name), layers_of(patient.model, "linear")
        needs, work = criterion.needs, criterion.work
        blocked = _failing(patient, "finite weights", "repeatable") if "model" in needs and "data" in needs else None
        if work is not None and work(layers, criterion.settings(), 1).backwards:
            blocked = blocked or _failing(patient, "gradient reaches", "gradient is right")
        command = f"score {name}"
        if blocked:
            yield Ability(command, "no", f"the gate {blocked!r} failed")
        elif criterion.images and patient.loaded.tokenizer is not None:
            yield Ability(command, "no", "takes images, and this network reads text")
        elif criterion.labelled and patient.loaded.tokenizer is not None:
            yield Ability(command, "partly", "from Python only, with batches: records of text say no class")
        elif "data" in needs and patient.loaded.tokenizer is None:
            yield Ability(command, "partly", "from Python only, with batches: without a tokenizer no text can be read")
        else:
            wanted = [NEEDS[need].split(" (")[0].split(":")[0] for need in NEEDS if need in needs]
            yield Ability(command, "yes", f"needs {', '.join(wanted)}" if wanted else "needs nothing")


def _failing(patient: ModelUnderTest, *gates: str) -> str | None:
    found = patient.findings
    return next((name for name in gates if name in found and found[name].status == "fail"), None)


def _tuning(patient: ModelUnderTest, layers: Sequence[Layer]) -> Iterator[Ability]:
    quantised = is_quantised(patient.model)
    text = "" if patient.loaded.tokenizer is not None else "; from Python only: without a tokenizer no text can be read"
    for method in METHODS:
        command = f"tune --method {method}"
        if method == "qlora" and not quantised:
            yield _four_bits(patient, command)
            continue
        try:
            check_method(method, quantised)
        except KeylayersError as error:
            yield Ability(command, "no", str(error))
            continue
        refused = _refused_in_full(patient.model, layers) if method == "full" else _refused_by_peft(patient, layers)
        taken = sum(layer.name not in refused for layer in layers)
        verdict: Verdict = "yes" if taken == len(layers) and not text else "partly" if taken else "no"
        reasons = [f"{name}: {why}" for name, why in refused.items()]
        told = f"{taken} of {len(layers)} layers" + (f"; not {some(reasons, 2)}" if reasons else "") + text
        yield Ability(command, verdict, told)


def _four_bits(patient: ModelUnderTest, command: str) -> Ability:
    if not hasattr(patient.model, "config"):
        return Ability(command, "no", "only Hugging Face models are loaded in 4 bits")
    if importlib.util.find_spec("bitsandbytes") is None:
        return Ability(command, "no", "needs bitsandbytes (pip install bitsandbytes)")
    why = "not tried: it loads the model anew in 4 bits (nf4), which bitsandbytes refuses for some shapes on a CPU"
    return Ability(command, "partly", why)


def _refused_in_full(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Layer -> why it cannot train in full."""
    refused: dict[str, str] = {}
    for layer in layers:
        try:
            selected_parameters(model, _only([layer]))
        except KeylayersError as error:
            refused[layer.name] = _short(error)
    return refused


def _refused_by_peft(patient: ModelUnderTest, layers: Sequence[Layer]) -> dict[str, str]:
    """Layer -> why peft cannot adapt it; asked kind by kind, and only where not all go at once."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    if not _refusal(patient.model, layers):
        return {}
    reasons = {kind: _refusal(patient.model, members) for kind, members in kinds.items()}
    return {layer.name: reasons[layer.kind] for layer in layers if reasons[layer.kind]}


def _refusal(model: nn.Module, layers: Sequence[Layer]) -> str:
    try:
        with attached(model, layers, LoraSettings(rank=1)):
            return ""
    except KeylayersError as error:
        return _short(error)


def _only(layers: Sequence[Layer]) -> Selection:
    return select(layers, "all", allow_total=True)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else f"{text[:237]}..."


def _reverting(patient: ModelUnderTest) -> Ability:
    folder = patient.loaded.folder
    if folder is None or not any(folder.glob("*.safetensors")):
        return Ability("revert", "no", "works on checkpoint folders of safetensors, and this model comes from none")
    return Ability("revert", "yes", "streams the safetensors; needs a folder of a tuned one (keylayers revert --tuned)")


def _exporting(patient: ModelUnderTest, selection: Selection) -> Iterator[Ability]:
    for name in TARGETS:
        command = f"export --to {name}"
        try:
            made = export(patient.model, selection, name)
        except KeylayersError as error:
            yield Ability(command, "no", f"{selection.policy}: {_short(error)}")
        except Exception as error:  # a rule that this architecture breaks must not hide the others
            yield Ability(command, "no", f"{selection.policy}: broke off with {type(error).__name__}: {_short(error)}")
        else:
            yield Ability(command, "yes", f"{selection.policy}: its rule selects exactly the {len(made.matched)} asked "
                          f"{made.unit}")  # fmt: skip
