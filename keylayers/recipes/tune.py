"""Tune selected layers and, beside them, other choices at the same steps and seeds; measure all on held-out data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from keylayers.actions.tune import TuneSettings, tune
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.measures import paired_difference, t_interval
from keylayers.measures.loss import example_losses
from keylayers.recipes.inputs import Inputs, prepare_data
from keylayers.runs import RunFolder, note, progress
from keylayers.scores import LayerScores, Selection, select


@dataclass(frozen=True)
class TuneRequest:
    """What to tune and what to compare it with."""

    inputs: Inputs = field(default_factory=Inputs)
    select: str = "top:30%"
    against: tuple[str, ...] = ()
    """Other policies, run at the same steps and seeds. `random` ones without a seed draw anew for every seed."""
    granularity: str = "linear"
    """Of the layers, where no scores are given."""
    settings: TuneSettings = field(default_factory=TuneSettings)
    learning_rates: tuple[float, ...] = ()
    """More than one: each arm takes the one with the lowest calibration loss at the first seed."""
    seeds: int = 1


@dataclass(frozen=True)
class Arm:
    """One choice of layers, over all seeds."""

    policy: str
    losses: tuple[float, ...]
    """Held-out loss per seed, nats per token."""
    learning_rate: float
    layers: int
    size_share: float
    """Selected layers' share of all scored layers' parameters."""
    trainable: int
    seconds: float
    """Mean training time of a seed."""
    peak_bytes: int


@dataclass(frozen=True)
class Comparison:
    """All arms, with the loss before tuning; the first arm is the one asked for."""

    base_loss: float
    arms: tuple[Arm, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """Lines of a table, one per arm."""
        first = self.arms[0]
        return [
            (
                arm.policy,
                _with_interval(arm.losses),
                "" if arm is first else _difference(first.losses, arm.losses),
                f"{arm.layers}",
                f"{arm.size_share:.1%}",
                f"{arm.trainable:,}",
                f"{arm.learning_rate:g}",
                f"{arm.seconds:.1f}",
                f"{arm.peak_bytes / 2**20:,.0f}",
            )
            for arm in self.arms
        ]


COLUMNS = (
    "layers chosen by",
    "held-out loss",
    "first arm minus this",
    "layers",
    "of parameters",
    "trainable",
    "lr",
    "seconds",
    "peak MiB",
)


def compare_arms(request: TuneRequest, run: RunFolder, scores: LayerScores | None = None) -> Comparison:
    """Tunes every arm with every seed from the same start; what is finished is kept in the run folder.

    Raises:
        BadInput, BadSelection: before anything trains, if a policy does not fit.
    """
    loaded = request.inputs.load_model()
    layers = scores.layers if scores is not None else named_layers(loaded.model, request.granularity)
    policies = [request.select, *request.against]
    for policy in policies:
        choose(scores, layers, policy, seed=0)
    data = prepare_data(request.inputs, loaded)
    base = run.part("base", lambda: {"loss": example_losses(loaded.model, data.test).mean})["loss"]
    note(f"held-out loss before tuning: {base:.4f} nats per token")
    rates = request.learning_rates or (request.settings.training.learning_rate,)
    steps = request.settings.training.steps
    arms = []
    with progress(len(policies) * (request.seeds + (len(rates) if len(rates) > 1 else 0)) * steps, "tuning") as bar:
        for policy in policies:

            def one(seed: int, rate: float, policy: str = policy) -> dict[str, Any]:
                name = f"{_slug(policy)}-lr{rate:g}-seed{seed}"
                before = bar.done
                result = run.part(name, lambda: _train_one(request, run, scores, layers, policy, seed, rate, bar, name))
                bar.advance(before + steps - bar.done, text=policy)
                return result

            rate = rates[0]
            if len(rates) > 1:
                tried = {rate: one(0, rate)["calibration_loss"] for rate in rates}
                rate = min(tried, key=lambda rate: tried[rate])
            results = [one(seed, rate) for seed in range(request.seeds)]
            arms.append(_arm(policy, rate, results))
            note(f"{policy}: held-out loss {_with_interval(arms[-1].losses)}")
    return Comparison(base, tuple(arms))


def choose(scores: LayerScores | None, layers: Sequence[Layer], policy: str, seed: int) -> Selection:
    """The selection a policy makes; a random policy without a seed of its own takes the training seed's."""
    words = policy.split(":")
    if "random" in words and not any(word.startswith("seed=") for word in words):
        policy = f"{policy}:seed={seed}"
    return select(scores if scores is not None else layers, policy, allow_total=words == ["all"])


def _train_one(
    request: TuneRequest,
    run: RunFolder,
    scores: LayerScores | None,
    layers: Sequence[Layer],
    policy: str,
    seed: int,
    rate: float,
    bar: Any,
    name: str,
) -> dict[str, Any]:
    loaded = request.inputs.load_model(four_bit=request.settings.method == "qlora")
    data = prepare_data(request.inputs, loaded)
    selection = choose(scores, layers, policy, seed)
    settings = replace(request.settings, training=replace(request.settings.training, seed=seed, learning_rate=rate))
    start = bar.done

    def report(step: int, steps: int, loss: float) -> None:
        bar.advance(start + step - bar.done, text=f"{policy} loss {loss:.3f}")

    kept = policy == request.select and seed == 0
    tuned = tune(
        loaded.model,
        selection,
        data.train,
        settings,
        folder=run.path / "arms" / name,
        report=report,
        announce=(lambda plan: note(f"{policy}: {plan}")) if seed == 0 else None,
    )
    if kept:
        _store(tuned.model, loaded, run.path / "tuned")
    held_out = example_losses(tuned.model, data.test)
    return {
        "test_loss": held_out.mean,
        "test_nats": held_out.nats.tolist(),
        "calibration_loss": example_losses(tuned.model, data.calibration).mean,
        "train_losses": list(tuned.log.losses),
        "seconds": tuned.log.seconds,
        "peak_bytes": tuned.log.peak_bytes,
        "trainable": tuned.forecast.trainable,
        "size_share": selection.share_of_parameters,
        "layers": list(selection.names),
        "untouched": tuned.untouched,
    }


def _store(model: Any, loaded: Any, folder: Path) -> None:
    """The tuned model as peft or transformers store it; the folder appears whole or not at all."""
    import shutil

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _arm(policy: str, rate: float, results: Sequence[Mapping[str, Any]]) -> Arm:
    losses = tuple(result["test_loss"] for result in results)
    if not all(map(math.isfinite, losses)):
        raise BadInput(f"{policy}: the held-out loss is not finite; lower the learning rate ({rate:g}).")
    return Arm(
        policy,
        losses,
        rate,
        len(results[0]["layers"]),
        sum(result["size_share"] for result in results) / len(results),
        round(sum(result["trainable"] for result in results) / len(results)),
        sum(result["seconds"] for result in results) / len(results),
        max(result["peak_bytes"] for result in results),
    )


def _with_interval(losses: Sequence[float]) -> str:
    if len(losses) < 2:
        return f"{losses[0]:.4f}"
    interval = t_interval(losses)
    return f"{interval.estimate:.4f} ± {(interval.high - interval.low) / 2:.4f}"


def _difference(first: Sequence[float], other: Sequence[float]) -> str:
    if len(first) < 2:
        return f"{first[0] - other[0]:+.4f}"
    paired = paired_difference(first, other)
    half = (paired.interval.high - paired.interval.low) / 2
    return f"{paired.interval.estimate:+.4f} ± {half:.4f}"


def _slug(policy: str) -> str:
    return "".join(
        character if character.isalnum() or character in "-=." else "_" for character in policy.replace("%", "pc")
    )
