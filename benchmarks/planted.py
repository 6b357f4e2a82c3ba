"""Planted truth: tuned models in which only some layers' changes are useful; can a criterion tell which?

`python -m benchmarks.planted` prints the table for a small Llama that is trained here in seconds, first to answer
symbols with either of two, then to prefer one. For a real model, in about ten minutes:
`python -m benchmarks.planted --model bundled:llama --data bundled:pirate --useful 8 --relative 0.05 --steps 60`.
A larger norm is no fair test there: the model is so sure of wrong answers (14 nats per token) that noise of a fifth of
its weights' norm helps by itself.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor, nn

from keylayers import criteria
from keylayers.criteria.delta_norm import DeltaNorm
from keylayers.criteria.learned_mask import LearnedMask
from keylayers.criteria.path_integral import PathIntegral
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput
from keylayers.layers.deltas import Deltas, held_delta
from keylayers.layers.gating import frozen
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from keylayers.layers.tensor_swap import tensors_swapped
from keylayers.measures.objective import Batch, Loss, language_loss

ARMS: dict[str, tuple[str, Any]] = {
    "path_integral, 8 points": ("path_integral", PathIntegral()),
    "path_integral, 1 point": ("path_integral", PathIntegral(points=1)),
    "leave_one_out": ("leave_one_out", None),
    "add_one_in": ("add_one_in", None),
    **{
        f"learned_mask, {name}": ("learned_mask", LearnedMask(start, optimiser, rate, steps))
        for name, start, optimiser, rate, steps in (
            ("Adam 0.01 x 100 from 4", 4.0, "adam", 0.01, 100),
            ("Adam 0.01 x 100 from 0", 0.0, "adam", 0.01, 100),
            ("SGD 3 x 100 from 0", 0.0, "sgd", 3.0, 100),
        )
    },
    "delta_norm": ("delta_norm", None),
    "delta_norm, relative to the weight": ("delta_norm", DeltaNorm(relative="weight")),
    "random": ("random", None),
}
"""Row of the table -> criterion and its settings."""


@dataclass(frozen=True)
class Planting:
    """How the truth is planted."""

    useful: int = 5
    """Layers whose change is trained; all others get noise."""
    relative: float = 0.2
    """Frobenius norm of every layer's change, in norms of its base weight: the same for all layers, exactly."""
    steps: int = 100
    learning_rate: float = 0.05
    """Of Adam on the direction of each useful change, whose root mean square is kept at 1."""
    carries: float = 0.1
    """What a planted layer must bring at least, in equal shares of the drop: a random layer may be unable to carry
    anything (the queries of a block that attends to nothing), and is then no truth to be found. Judged by taking its
    change back where nothing else is changed but the useful layers; no criterion is asked."""


@dataclass(frozen=True)
class Planted:
    """A tuned model with known truth, as deltas on its base."""

    deltas: Deltas
    useful: Bool[np.ndarray, " layers"]
    """Which layers carry the useful change."""
    losses: dict[str, float]
    """Loss in nats per token of the base, with the useful changes alone, with the noise alone, and with both."""
    redrawn: tuple[str, ...]
    """Layers that were drawn first and could not carry."""


def planted(
    model: nn.Module,
    layers: Sequence[Layer],
    train: Sequence[Batch],
    check: Sequence[Batch],
    settings: Planting,
    *,
    loss: Loss = language_loss,
    seed: int = 0,
) -> Planted:
    """Trains the weights of a few random layers at a fixed relative norm and gives all others noise of the same norm.

    The direction of each useful change is learnt by Adam, its norm held by dividing by it, so that no criterion can
    tell the useful layers by size. Noise is Gaussian. The model is left as it was.

    Raises:
        BadInput: if too few layers can carry a useful change of that norm.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [layer.parameters[0] for layer in layers]  # of a linear layer, its weight
    weights = {name: parameters_of(model)[name].detach() for name in names}
    radius = {name: settings.relative * weight.norm() for name, weight in weights.items()}

    def learnt(chosen: Sequence[str], steps: int) -> dict[str, Tensor]:
        few = {name: weights[name] for name in chosen}
        return _learnt_changes(model, few, radius, train, replace(settings, steps=steps), loss, seed)

    def idle(changes: Mapping[str, Tensor]) -> list[str]:
        """The layers that do not carry."""
        whole = _loss_with(model, changes, check, loss)
        least = settings.carries * (_loss_with(model, {}, check, loss) - whole) / len(changes)
        without = {name: {other: one for other, one in changes.items() if other != name} for name in changes}
        return [name for name, rest in without.items() if _loss_with(model, rest, check, loss) - whole < least]

    drawn = [names[index] for index in torch.randperm(len(names), generator=generator)]
    chosen, drawn, redrawn = drawn[: settings.useful], drawn[settings.useful :], list[str]()
    while True:
        # A short trial shows most of those that cannot carry.
        bad = idle(learnt(chosen, settings.steps // 3)) or idle(useful := learnt(chosen, settings.steps))
        if not bad:
            break
        if len(bad) > len(drawn):
            raise BadInput(f"only {len(chosen) - len(bad)} layers carry a useful change; plant fewer, or larger ones.")
        redrawn += bad
        chosen = [name for name in chosen if name not in bad] + drawn[: len(bad)]
        drawn = drawn[len(bad) :]
    noise = {name: torch.randn(weights[name].shape, generator=generator) for name in names if name not in useful}
    noise = {name: one.to(weights[name]) * (radius[name] / one.norm()) for name, one in noise.items()}
    changes = useful | noise
    losses = {"base": {}, "useful alone": useful, "noise alone": noise, "both": changes}
    return Planted(
        Deltas(tuple(layers), tuple({name: held_delta(changes[name])} for name in names), {}, f"planted, seed {seed}"),
        np.array([name in useful for name in names]),
        {what: _loss_with(model, those, check, loss) for what, those in losses.items()},
        tuple(redrawn),
    )


def _learnt_changes(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    radius: Mapping[str, Tensor],
    train: Sequence[Batch],
    settings: Planting,
    loss: Loss,
    seed: int,
) -> dict[str, Tensor]:
    directions = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in weights.items()}
    with frozen(model), torch.enable_grad(), tensors_swapped(model, weights) as place:
        for name, weight in weights.items():
            place(name, weight + directions[name])
        _mean(loss, model, train[0]).backward()
        with torch.no_grad():
            for one in directions.values():  # steepest descent first, so that nothing random is left in the direction
                assert one.grad is not None
                one.copy_(-one.grad / one.grad.square().mean().sqrt())
        optimiser = torch.optim.Adam(directions.values(), lr=settings.learning_rate)
        order = torch.Generator().manual_seed(seed)
        for step in range(settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * (1 - step / settings.steps)
            for name, weight in weights.items():
                place(name, weight + directions[name] * (radius[name] / directions[name].norm()))
            optimiser.zero_grad()
            _mean(loss, model, train[int(torch.randint(len(train), (), generator=order))]).backward()
            optimiser.step()
    return {name: (one * (radius[name] / one.norm())).detach() for name, one in directions.items()}


def _mean(loss: Loss, model: nn.Module, batch: Batch) -> Tensor:
    summed, count = loss(model, batch)
    return summed / count


def _loss_with(model: nn.Module, changes: Mapping[str, Tensor], data: Sequence[Batch], loss: Loss) -> float:
    own = parameters_of(model)
    with frozen(model), torch.no_grad(), tensors_swapped(model, changes) as place:
        for name, change in changes.items():
            place(name, own[name].detach() + change)
        pairs = [loss(model, batch) for batch in data]
    return sum(float(summed) for summed, _ in pairs) / sum(count for _, count in pairs)


def auroc(scores: Float[np.ndarray, " layers"], useful: Bool[np.ndarray, " layers"]) -> float:
    """Probability that a useful layer scores above another, ties counting half; in [0, 1], by chance 0.5.

    Scores closer than about 0.00001 of the largest are ties: norms made equal differ by rounding.
    """
    positives, negatives = int(useful.sum()), int((~useful).sum())
    coarse = np.round(scores / max(float(np.abs(scores).max()), 1e-300), 5)
    return float((rankdata(coarse)[useful].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def scores_of(model: nn.Module, truth: Planted, batches: Sequence[Batch], arm: str, seed: int) -> np.ndarray:
    """What one arm says of each layer, looking at the deltas as a whole."""
    name, settings = ARMS[arm]
    if settings is None and name == "random":
        settings = criteria.get(name).settings(seed=seed)
    evidence = Evidence(model=model, deltas=truth.deltas, data=batches)
    return criteria.get(name)(evidence, truth.deltas.layers, settings).values


def study(
    model: nn.Module,
    train: Sequence[Batch],
    calibration: Sequence[Batch],
    settings: Planting,
    *,
    plantings: int = 5,
    first: int = 0,
    looks: Sequence[Batch] | None = None,
    arms: Sequence[str] = tuple(ARMS),
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, list[float]], list[Planted]]:
    """AUROC of every arm in every planting, and the plantings; give calibration batches that are not trained on.

    `first`: seed of the first planting, the others follow. `looks`: what criteria look at, where not all of them.
    """
    layers = named_layers(model, "linear")
    truths = []
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in range(first, first + plantings):
        truth = planted(model, layers, train, calibration, settings, seed=seed)
        truths.append(truth)
        for arm in arms:
            found[arm].append(auroc(scores_of(model, truth, looks or calibration, arm, seed), truth.useful))
        tell(
            f"planting {seed}: "
            + ", ".join(f"{name} {value:.3f}" for name, value in truth.losses.items())
            + f"; redrawn: {', '.join(truth.redrawn) or 'none'}"
        )
    return found, truths


def table(found: Mapping[str, Sequence[float]], truths: Sequence[Planted], settings: Planting) -> list[str]:
    """The result in markdown."""
    layers = len(truths[0].useful)
    lines = [
        f"{settings.useful} of {layers} layers carry the useful change, the others Gaussian noise; every change has "
        f"{settings.relative:g} of its weight's norm. Loss in nats per token, over {len(truths)} plantings:",
        "",
        "| loss | " + " | ".join(f"planting {seed}" for seed in range(len(truths))) + " |",
        "|---|" + "---:|" * len(truths),
    ]
    for name in truths[0].losses:
        lines.append(f"| {name} | " + " | ".join(f"{truth.losses[name]:.3f}" for truth in truths) + " |")
    lines.append("| layers redrawn | " + " | ".join(str(len(truth.redrawn)) for truth in truths) + " |")
    lines += [
        "",
        "| AUROC of useful against other layers (chance 0.5) | lowest | mean | each planting |",
        "|---|---:|---:|---|",
    ]
    for arm, values in found.items():
        each = " ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {arm} | {min(values):.3f} | {np.mean(values):.3f} | {each} |")
    return lines


SYMBOLS, LENGTH, CONTEXT = 24, 6, 13


def toy_batches(task: str, count: int, size: int, seed: int) -> list[dict[str, Tensor]]:
    """Symbols, a separator, then an answer: each symbol, `shifted` by three, or `either` at random; only that is
    supervised."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        given = torch.randint(0, SYMBOLS, (size, LENGTH), generator=generator)
        shifted = torch.randint(0, 2, given.shape, generator=generator) if task == "either" else 1
        answer = (given + 3 * shifted) % SYMBOLS
        ids = torch.cat([given, torch.full((size, 1), SYMBOLS), answer], dim=1)
        labels = ids.clone()
        labels[:, : LENGTH + 1] = -100
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def toy_model(steps: int = 400, seed: int = 0) -> nn.Module:
    """A Llama of 3 blocks (22 linear layers) that has learnt to answer six symbols with either of two for each.

    It is unsure between them, as it should be, so that noise helps nothing: a base that is sure of a wrong answer gains
    from any change that makes it less sure, and then no layer's change is useless.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SYMBOLS + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for batch in toy_batches("either", steps, 32, seed=seed + 1):
        optimiser.zero_grad()
        _mean(language_loss, model, batch).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def real_batches(
    name: str, loaded: Any, size: int, count: int
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Training and calibration batches of a data set as the command line names it, cut at 128 tokens."""
    from keylayers.data.batches import batches
    from keylayers.inputs.text import Inputs, prepare_data

    inputs = Inputs(loaded.source, name, max_length=128, records=1000, held_out=size * count)
    parts = prepare_data(inputs, loaded)
    return batches(parts.train, size), batches(parts.calibration, size, shuffle=False)


def few(batches: Sequence[Batch], records: int) -> list[Batch]:
    """The first so many records, in batches of at most 8."""
    pieces = (
        {key: value[at : at + 8] for key, value in one.items()} for one in batches for at in range(0, rows(one), 8)
    )
    found: list[Batch] = []
    for piece in pieces:
        left = records - sum(map(rows, found))
        found += [{key: value[:left] for key, value in piece.items()}] if left > 0 else []
    return found


def rows(batch: Batch) -> int:
    """How many records it holds."""
    return len(batch["labels"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 0 if path_integral reaches 0.95 in every planting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="as `keylayers score --model`; default: the toy trained here")
    parser.add_argument("--data", default="bundled:pirate", help="what the useful change is trained on, with --model")
    parser.add_argument("--plantings", type=int, default=5)
    parser.add_argument("--useful", type=int, help="layers with a useful change; default: 5 of the toy, else a fifth")
    parser.add_argument("--relative", type=float, default=Planting.relative, help="norm of each change in weight norms")
    parser.add_argument("--steps", type=int, default=Planting.steps, help="of training the useful changes")
    parser.add_argument("--carries", type=float, default=Planting.carries, help="least share of a useful layer")
    parser.add_argument("--first", type=int, default=0, help="seed of the first planting")
    parser.add_argument("--records", type=int, help="that criteria look at; default: all for calibration")
    parser.add_argument("--arm", action="append", help="only rows whose name holds this; repeat for several")
    asked = parser.parse_args(arguments)
    if asked.model is None:
        model = toy_model()
        train, calibration = toy_batches("shifted", 100, 32, 7), toy_batches("shifted", 4, 64, 8)
    else:
        from keylayers.models.loading import load_model

        loaded = load_model(asked.model)
        model = loaded.model
        train, calibration = real_batches(asked.data, loaded, 8, 6)
    useful = asked.useful or (Planting.useful if asked.model is None else len(named_layers(model, "linear")) // 5)
    settings = Planting(useful=useful, relative=asked.relative, steps=asked.steps, carries=asked.carries)
    arms = [name for name in ARMS if not asked.arm or any(part in name for part in asked.arm)]
    found, truths = study(
        model,
        train,
        calibration,
        settings,
        plantings=asked.plantings,
        first=asked.first,
        looks=None if asked.records is None else few(calibration, asked.records),
        arms=arms,
        tell=lambda line: print(line, file=sys.stderr),
    )
    print("\n".join(table(found, truths, settings)))
    return 0 if min(found.get("path_integral, 8 points", [1.0])) >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
