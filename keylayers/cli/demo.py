"""The whole story on the bundled model: which layers carry three styles, do they agree, does training only them do."""

import time
from pathlib import Path

from keylayers.cli.report import end_with_report
from keylayers.cli.terminal import quiet_libraries, say, table
from keylayers.errors import BadInput

STYLES = ("pirate", "formal", "json")
TUNED_STYLE = STYLES[0]
CRITERIA = ("path_integral", "learned_mask")
CHOSEN_BY = "path_integral"
ARMS = ("top:30%", "all", "random:30%:match=params", "random:30%:match=kind", "bottom:30%", "not:bottom:25%")
STAGE_ONE_STEPS, MASK_STEPS, TUNE_STEPS = 100, 60, 60
SETTINGS = {"points": 4, "steps": MASK_STEPS}
RECORDS, HELD_OUT, BATCH = 1024, 96, 8
RATE = 3e-3


def run_demo(out: Path, seeds: int, fresh: bool) -> None:
    """`keylayers demo`."""
    if seeds < 1:
        raise BadInput(f"--seeds {seeds}: expected at least 1.")
    began = time.monotonic()
    say("keylayers: which layers of a model carry what it learns, and is it enough to train those?")
    say(f"bundled model, three styles of answering ({', '.join(STYLES)}); results in {out}\n")
    quiet_libraries()
    import torch

    torch.set_num_threads(1)  # the model is too small for two threads to share its products
    from keylayers.inputs.text import Inputs
    from keylayers.recipes.comparison import COLUMNS
    from keylayers.recipes.score import score_layers
    from keylayers.recipes.score_request import ScoreRequest
    from keylayers.recipes.tune import TuneRequest, compare_arms
    from keylayers.report.heatmap import draw_heatmap
    from keylayers.runs import open_run, write_json
    from keylayers.scores import agreements, save
    from keylayers.training.trainer import TrainSettings

    scores = {}
    for style in STYLES:
        inputs = Inputs("bundled:llama", f"bundled:{style}", records=RECORDS, held_out=HELD_OUT, max_length=192)
        request = ScoreRequest(
            inputs=inputs,
            criteria=CRITERIA,
            settings=SETTINGS,
            stage_one=TrainSettings(steps=STAGE_ONE_STEPS, batch_size=BATCH, learning_rate=RATE),
            batch_size=BATCH,
        )
        with open_run(out / style, "score", _plain(request), fresh=fresh) as run:
            scores[style] = score_layers(request, run)
        _say_style(style, scores[style])
    for name in CRITERIA:
        say(f"\nDo the styles need the same layers? By {name}:")
        say(str(agreements([scores[style][name] for style in STYLES], 0.75, labels=STYLES)))
    both = [scores[TUNED_STYLE][name] for name in CRITERIA]
    say(f"\nDo the criteria agree on {TUNED_STYLE}?")
    say(str(agreements(both, 0.75, labels=CRITERIA)))
    every = [scores[style][name] for name in CRITERIA for style in STYLES]
    draw_heatmap(every, [f"{name}, {style}" for name in CRITERIA for style in STYLES], out / "scores.png")
    tuning = TuneRequest(
        inputs=Inputs("bundled:llama", f"bundled:{TUNED_STYLE}", records=RECORDS, held_out=HELD_OUT, max_length=192),
        select=ARMS[0],
        against=ARMS[1:],
        settings=_tune_settings(),
        seeds=seeds,
    )
    say(f"\nTraining on {TUNED_STYLE}, {TUNE_STEPS} steps, {seeds} seeds; layers chosen by {CHOSEN_BY}:")
    with open_run(out / "tuning", "tune", _plain(tuning), fresh=fresh) as run:
        result = compare_arms(tuning, run, scores[TUNED_STYLE][CHOSEN_BY])
        write_json(run.path / "comparison.json", _plain(result))
        save(scores[TUNED_STYLE][CHOSEN_BY], run.path / "scores.json")
    say("")
    say(table(COLUMNS, result.rows()))
    say(f"before training {result.base_loss:.4f}; nats per token of test records, by which nothing was chosen")
    say(f"±: 95 % interval over {seeds} seeds; random: for every seed new layers with as many parameters")
    say(f"\n{time.monotonic() - began:.0f} s. Picture: {out / 'scores.png'}; tuned model: {out / 'tuning' / 'tuned'}")
    say("Next, your own: keylayers score path_integral --model MODEL --data DATA; then keylayers tune --help")
    end_with_report(out)


def _say_style(style: str, scores) -> None:  # type: ignore[no-untyped-def]
    chosen = scores[CHOSEN_BY]
    noted = chosen.provenance.settings
    best = ", ".join(layer.name.removeprefix("model.layers.") for layer in chosen.ranking()[:4])
    say(
        f"{style}: LoRA on all layers lowers the loss {noted['loss_base']:.3f} -> {noted['loss_tuned']:.3f}; "
        f"{CHOSEN_BY} gives most of it to {best} (scores sum to the drop within {noted['completeness_error']:.2%})"
    )


def _tune_settings():  # type: ignore[no-untyped-def]
    from keylayers.actions.finetuning import TuneSettings
    from keylayers.training.trainer import TrainSettings

    return TuneSettings(training=TrainSettings(steps=TUNE_STEPS, batch_size=BATCH, learning_rate=RATE))


def _plain(request: object) -> dict:
    from dataclasses import asdict

    return asdict(request)  # type: ignore[call-overload]
