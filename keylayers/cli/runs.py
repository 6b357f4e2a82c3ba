"""Commands that work in a run folder: score, tune, revert."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from keylayers.cli.options import pairs
from keylayers.cli.report import end_with_report
from keylayers.cli.terminal import quiet_libraries, say, table
from keylayers.errors import worded

LOADING = ("dtype", "allow_pickle", "trust_remote_code")


def run_score(names: list[str] | None, options: dict[str, Any]) -> None:
    """`keylayers score`."""
    from keylayers import criteria
    from keylayers.runs import note

    for name in names or ():
        criteria.check(name)
    inputs, settings = _inputs(options), pairs(options["settings"], "--set")
    if not names:
        names, settings = [criteria.DEFAULT], {**criteria.DEFAULT_SETTINGS, **settings}
    _check_settled(options["stop_early"], options["settled"])
    note(f"scoring {options['model']} with {', '.join(names)}")
    quiet_libraries()
    from keylayers.data.sources import source_files
    from keylayers.inputs.text import Inputs, tuned_place
    from keylayers.recipes.early_stopping import StopEarly, settling_of
    from keylayers.recipes.early_stopping_text import in_words
    from keylayers.recipes.score import score_layers
    from keylayers.recipes.score_request import ScoreRequest, checked
    from keylayers.runs import Given, open_run
    from keylayers.scores.files import save
    from keylayers.scores.rank_convergence import Rule
    from keylayers.training.adapters import LoraSettings
    from keylayers.training.trainer import TrainSettings

    rule = Rule() if options["settled"] is None else Rule(target=options["settled"])
    request = ScoreRequest(
        inputs=Inputs(**inputs),
        criteria=tuple(dict.fromkeys(names)),
        granularity=options["granularity"],
        tuned=options["tuned"],
        sibling=options["sibling"],
        measure=options["measure"],
        settings=settings,
        stage_one=TrainSettings(
            steps=options["steps"], batch_size=options["batch_size"], learning_rate=options["lr"], seed=options["seed"]
        ),
        lora=LoraSettings(rank=options["rank"], alpha=2.0 * options["rank"]),
        batch_size=options["batch_size"],
        score_records=options["score_records"],
        stop_early=StopEarly(rule) if options["stop_early"] else None,
    )
    checked(request)  # before files are digested and a folder is made
    folder, file = _score_place(options["out"], options["model"], options["data"])
    tuned = None if options["tuned"] is None else tuned_place(options["tuned"])
    given = Given((options["model"], options["weights"], tuned, options["sibling"]), source_files(options["data"]))
    with open_run(folder, "score", request, given=given, fresh=options["fresh"]) as run:
        results = score_layers(request, run)
    if (decided := settling_of(folder)) is not None:
        say(worded(in_words(decided)))
    for name, result in results.items():
        _show_scores(result)
        place = folder / f"{name}.json"
        if file is not None:
            place = file if len(results) == 1 else file.with_name(f"{file.stem}-{name}.json")
            save(result, place)
        say(f"stored in {place}")
    end_with_report(folder)


def run_tune(options: dict[str, Any]) -> None:
    """`keylayers tune`."""
    from keylayers.runs import note
    from keylayers.scores import load_scores, parse, save

    for policy in (options["select"], *(options["against"] or ())):
        parse(policy)
    scores = load_scores(options["scores"]) if options["scores"] is not None else None
    inputs = _inputs(options)
    note(f"tuning {options['select']} of {options['model']} on {options['data']}")
    quiet_libraries()
    from keylayers.actions.finetuning import TuneSettings
    from keylayers.data.sources import source_files
    from keylayers.inputs.text import Inputs
    from keylayers.recipes.comparison import COLUMNS
    from keylayers.recipes.tune import TuneRequest, compare_arms
    from keylayers.runs import Given, open_run, write_json
    from keylayers.training.adapters import LoraSettings
    from keylayers.training.trainer import TrainSettings

    rates = tuple(options["lr"] or (1e-4 if options["method"] == "full" else 3e-3,))
    request = TuneRequest(
        inputs=Inputs(**inputs),
        select=options["select"],
        against=tuple(options["against"] or ()),
        granularity=options["granularity"],
        settings=TuneSettings(
            method=options["method"],
            training=TrainSettings(
                steps=options["steps"],
                batch_size=options["batch_size"],
                learning_rate=rates[0],
                checkpointing=options["checkpointing"],
            ),
            lora=LoraSettings(rank=options["rank"], alpha=2.0 * options["rank"]),
        ),
        learning_rates=rates,
        seeds=options["seeds"],
    )
    folder = options["out"] or Path("runs") / f"tune-{_slug(options['model'])}-{_slug(options['data'])}"
    settings = {**asdict(request), "scores": scores.sha256 if scores is not None else None}
    given = Given((options["model"], options["weights"]), source_files(options["data"]))
    with open_run(folder, "tune", settings, given=given, fresh=options["fresh"]) as run:
        result = compare_arms(request, run, scores)
        write_json(folder / "comparison.json", asdict(result))
        if scores is not None:
            save(scores, folder / "scores.json")  # what the layers were chosen by; the report shows it
    say("\n".join((table(COLUMNS, result.rows()), *result.notes())))
    say(f"before tuning {result.base_loss:.4f} nats per token; test records only; ± is a 95 % interval over seeds")
    say(f"the tuned model is in {folder / 'tuned'}; everything else in {folder}")
    end_with_report(folder)


def run_revert(base: str, tuned: str, scores: Path, out: Path, policy: str, remainder: str) -> None:
    """`keylayers revert`."""
    from keylayers.runs import note
    from keylayers.scores import load_scores, select
    from keylayers.scores.caveats import list_caveats

    selection = select(load_scores(scores), policy)
    for caveat in list_caveats(selection):
        note(caveat)
    quiet_libraries()
    from keylayers.actions.reverting import write_reverted
    from keylayers.inputs.text import tuned_place
    from keylayers.layers.model_versions import remainder_named
    from keylayers.models.sources import local_folder
    from keylayers.models.stored import fetched
    from keylayers.models.tuned import tuned_path

    kept = remainder_named(remainder)
    first, second = local_folder(base) or fetched(base), tuned_path(tuned_place(tuned))
    made = write_reverted(first, second, selection, out, remainder=kept)
    for text in made.notes:
        note(text)
    say(f"{out}: {made.tuned} tensors from {tuned}, {len(made.tensors) - made.tuned} from {base}")
    say(f"{made.remainder} (--remainder {kept})")


def _inputs(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of inputs.text.Inputs, which is slow to import."""
    names = ("model", "data", "weights", "max_length", "records", "template", "bad_share", *LOADING)
    return {**{name: options[name] for name in names}, "columns": pairs(options["columns"], "--column")}


def _check_settled(stop_early: bool, settled: float | None) -> None:
    from keylayers.errors import BadInput

    if settled is None:
        return
    if not stop_early:
        raise BadInput(f"--settled {settled:g} says when --stop-early stops; give --stop-early, too.")
    if not 0 < settled <= 1:
        raise BadInput(f"--settled {settled:g}: expected an agreement above 0 and at most 1, such as 0.9.")


def _rests_on(scores: Any, has_interval: bool) -> str:
    """On how much data a ranking rests, and what its intervals are over."""
    from keylayers import criteria
    from keylayers.criteria.support.batch_groups import GROUPS

    looks = "data" in criteria.get(scores.criterion).needs
    entry = next((one for one in scores.provenance.data if looks and "batches" in one), None)
    if entry is None:
        return "no interval: nothing that varies was looked at"
    groups = min(entry["batches"], GROUPS)
    over = f"intervals are over {groups} groups of batches" if has_interval else "no interval"
    part = f" ({entry['split']})" if entry.get("split") else ""
    return f"from {entry['records']} records{part} in {entry['batches']} batches; {over}"


def _show_scores(scores: Any) -> None:
    from keylayers.scores.caveats import ranking_caveats

    bounds = scores.interval()
    rows = []
    for index in scores.order()[:10]:
        layer = scores.layers[index]
        spread = "" if bounds is None else f"[{bounds[index][0]:.4g}, {bounds[index][1]:.4g}]"
        rows.append((layer.name, f"{scores.values[index]:.4g}", spread, f"{layer.size:,}"))
    say(f"\n{scores.criterion}: the 10 most critical of {len(scores.layers)} layers")
    say(table(("layer", "score", "95 % interval", "parameters"), rows))
    say(_rests_on(scores, bounds is not None))
    noted = scores.provenance.settings
    if "completeness_error" in noted:
        drop = noted["loss_base"] - noted["loss_tuned"]
        total = scores.values.sum() + noted["remainder"]
        say(f"the scores sum to {total:.4f}; the loss really fell by {drop:.4f} nats per token")
    for caveat in ranking_caveats(scores):
        say(worded(caveat))


def _score_place(out: Path | None, *named: str | None) -> tuple[Path, Path | None]:
    """The run folder, and the file that is asked for, if one is."""
    if out is not None and out.suffix == ".json":
        return out.with_suffix(".run"), out
    return out or Path("runs") / "-".join(["score", *(_slug(name) for name in named if name)]), None


def _slug(text: str) -> str:
    stem = text.rstrip("/").split("/")[-1].split(".json")[0]
    return "".join(character if character.isalnum() or character in "-_" else "-" for character in stem)
