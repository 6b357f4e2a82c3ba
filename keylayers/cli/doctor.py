"""`keylayers doctor`: gates, abilities and forecasts of a user's own model, each shown as it is known."""

import os
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from keylayers.cli.terminal import quiet_libraries, say, table
from keylayers.errors import worded

WIDTH = 120
FORMAT = "keylayers/doctor/1"


def run_doctor(settings: dict[str, Any]) -> int:
    """Runs every gate and forecast; 1 if a gate fails, else 0."""
    quiet_libraries()
    from keylayers.doctor.request import admit, check_files
    from keylayers.runs.progress import format_duration

    out: Path | None = settings["out"]
    if out is not None:
        _require_json(out)
    request = _request(settings)
    check_files(request)
    start = time.perf_counter()
    loaded = request.source.load_model()
    seconds = time.perf_counter() - start
    admitted = admit(request, loaded)
    found: dict[str, Any] = {
        "format": FORMAT,
        "model": loaded.identity(),
        "probe": admitted.probe,
        "loaded_in": seconds,
    }
    patient = admitted.patient
    say(
        f"{loaded.source}: {type(patient.model).__name__}, {found['model']['parameters']:,} parameters, "
        f"{str(patient.dtype).removeprefix('torch.')}, loaded in {seconds:.1f} s; inputs: {admitted.probe}\n"
    )
    found["gates"] = _show_gates(admitted)
    found["abilities"] = _show_abilities(admitted)
    found |= _show_costs(admitted)
    failures = [gate["name"] for gate in found["gates"] if gate["status"] == "fail"]
    held = sum(gate["status"] == "pass" for gate in found["gates"])
    skips = len(found["gates"]) - held - len(failures)
    took = format_duration(time.perf_counter() - start)
    named = f"; failed: {', '.join(failures)}" if failures else ""
    say(f"\n{held} gates hold, {len(failures)} fail, {skips} skipped, in {took}{named}")
    if out is not None:
        from keylayers.runs import write_json

        write_json(out, found)
        say(f"stored in {out}")
    return 1 if failures else 0


def _require_json(out: Path) -> None:
    from keylayers.errors import BadInput

    if out.suffix != ".json" or out.is_dir():
        raise BadInput(f"--out {out}: expected the name of a .json file.")
    nearest = next(place for place in out.absolute().parents if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BadInput(f"--out {out}: {nearest} is no folder that can be written to; give another place.")


def _request(settings: dict[str, Any]) -> Any:
    from keylayers.doctor.request import DoctorRequest
    from keylayers.inputs.text import Inputs

    given = {name: settings[name] for name in ("model", "weights", "dtype", "allow_pickle", "trust_remote_code")}
    if settings["data"] is not None:
        given |= {"data": settings["data"], "held_out": settings["records"], "max_length": settings["seq"]}
        given |= {name: settings[name] for name in ("template", "bad_share")}
    chosen = {name: settings[name] for name in ("scores", "select", "seq", "batch", "records", "rank", "sample")}
    return DoctorRequest(Inputs(**given), with_data=settings["data"] is not None, **chosen)


def _show_gates(admitted: Any) -> list[dict[str, Any]]:
    from keylayers.doctor.examination import examine

    most = len(admitted.patient.layers)
    if most > admitted.patient.most:
        few = f"{admitted.patient.most} of {most} layers, evenly spaced, where a gate is costly"
        say(f"Gates ({few}; --sample {most}: all)")
    else:
        say("Gates")
    found = []
    for check in examine(admitted.patient):
        say(_lines(check.status, check.name, check.detail))
        if check.remedy:
            say(_lines("", "", worded(f"-> {check.remedy}")))
        found.append(asdict(check))
    return found


def _lines(first: str, second: str, text: str, widths: tuple[int, int] = (5, 18)) -> str:
    """Two short columns and a text that is broken into lines beside them."""
    head = f"{first:<{widths[0]}}{second:<{widths[1]}}"
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _show_abilities(admitted: Any) -> list[dict[str, Any]]:
    from keylayers.doctor.capabilities import abilities
    from keylayers.doctor.guard import same_random_numbers

    if not admitted.selections:
        return []
    say("\nWhat each command can do with it")
    found = []
    with same_random_numbers():
        for ability in abilities(admitted.patient, admitted.layers, admitted.selections[0]):
            say(_lines(ability.verdict, ability.command, ability.why, (7, 26)))
            found.append(asdict(ability))
    return found


def _show_costs(admitted: Any) -> dict[str, Any]:
    """Times and forecasts; what cannot be measured is said, and the gates' verdict stands."""
    from keylayers.doctor.capabilities import is_quantised
    from keylayers.training.memory import free_bytes

    work = admitted.work
    if work is None or not admitted.selections:
        say("\nNo costs: the model could not be run.")
        return {}
    free = free_bytes()
    size, length = work.size, next(iter(work.batch.values())).shape[1:]
    shape = f"{size} x {length[0]} tokens" if "input_ids" in work.batch else f"{size} x {tuple(length)} numbers"
    say(f"\nCosts of batches of {shape}; free memory {_bytes(free)}")
    methods = ("qlora",) if is_quantised(admitted.patient.model) else ("lora", "full")
    return {"free_bytes": free} | _show_scoring(admitted) | _show_tuning(admitted, methods)


@contextmanager
def _careful(patient: Any) -> Iterator[None]:
    from keylayers.doctor.guard import same_random_numbers
    from keylayers.measures.loss import evaluating

    with same_random_numbers(), evaluating(patient.model):
        yield


def _attempt(patient: Any, what: str, work: Callable[[], Any]) -> Any:
    """The result of a measurement; None, with the reason said, where it breaks off."""
    try:
        with _careful(patient):
            return work()
    except Exception as error:  # the gates have told what is wrong; the other figures still count
        say(f"{what}: not measured, for it broke off with {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return None


def _show_scoring(admitted: Any) -> dict[str, Any]:
    from keylayers.doctor.costs import fits
    from keylayers.doctor.scoring import measure_passes, score_forecasts

    patient, layers, work = admitted.patient, admitted.layers, admitted.work
    passes = _attempt(patient, "scoring", lambda: measure_passes(patient, layers, work))
    if passes is None:
        return {}
    say(f"forward {_time(passes.forward)}, with backward through activations {_time(passes.backward)}; "
        f"with a gate on every layer {_time(passes.gated_forward)} and {_time(passes.gated_backward)}")  # fmt: skip
    rows = []
    forecasts = score_forecasts(passes, layers, work.batches)
    for one in forecasts:
        counts = ("-" if one.forwards is None else f"{one.forwards:,.0f}",
                  "-" if one.backwards is None else f"{one.backwards:,.0f}")  # fmt: skip
        rows.append((one.criterion, *counts, _time(one.seconds), _bytes(one.bytes), _verdict(one.bytes, fits)))
    say(f"\nScoring {len(layers)} layers on {work.batches} batches, criteria's own defaults, after tuning (forecast)")
    say(table(("criterion", "forwards", "with backward", "seconds", "beside weights", "memory"), rows))
    return {"passes": asdict(passes), "scoring": [asdict(one) for one in forecasts]}


def _show_tuning(admitted: Any, methods: tuple[str, ...]) -> dict[str, Any]:
    from keylayers.doctor.costs import fits
    from keylayers.doctor.tuning import tune_forecast

    patient, rows, found = admitted.patient, [], []
    for selection in admitted.selections:
        for method in methods:
            one = _attempt(
                patient,
                f"tuning {selection.policy} with {method}",
                partial(tune_forecast, patient, selection, method, admitted.work),
            )
            if one is None:
                continue
            found.append(asdict(one) | {"step": one.step, "extra": one.extra})
            if one.refused:
                say(_lines("", f"{selection.policy}, {method}: ", one.refused, (0, 0)))
                continue
            lowest = "-" if one.lowest_block is None else str(one.lowest_block)
            sizes = (_bytes(one.weights), _bytes(one.gradients), _bytes(one.moments), _bytes(one.activations))
            rows.append((selection.policy, method, lowest, f"{one.trainable:,}", *sizes, _time(one.step),
                         _verdict(one.extra, fits)))  # fmt: skip
    if rows:
        say("\nOne tuning step (seconds measured; activations forecast from one and two sequences, without dropout)")
        columns = ("selection", "method", "lowest block", "trainable", "weights", "gradients", "Adam", "activations",
                   "seconds", "memory")  # fmt: skip
        say(table(columns, rows))
    return {"tuning": found}


def _verdict(size: int | None, fits: Callable[[int], bool | None]) -> str:
    answer = None if size is None else fits(size)
    return "unknown" if answer is None else "fits" if answer else "does not fit"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:,.0f} s" if seconds >= 100 or not seconds else f"{seconds:.3g} s"


def _bytes(size: int | None) -> str:
    if size is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024  # type: ignore[assignment]
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
