"""The fragility of all layers beside one attack and two forward passes; choosing layers anew beside CLAT's training."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.interleaved import cpu_ratios, cpu_seconds
from keylayers.actions.fingerprinting import fingerprints
from keylayers.actions.hardening import HardenSettings, harden
from keylayers.criteria.feature_fragility import FeatureFragility, score_feature_fragility
from keylayers.criteria.protocol import Evidence
from keylayers.data.images import DIGITS, load_images
from keylayers.layers.naming import named_layers
from keylayers.measures.attacks import Pgd, loss_on
from keylayers.measures.objective import image_loss
from keylayers.models.digits import DigitsResNet
from keylayers.scores import Selection, select
from keylayers.training.images import ImageTraining

BATCH, BATCHES, TRAINED, IMAGES = 100, 3, 300, 900
WIDTHS = (24, 48, 96)
SETTINGS = FeatureFragility()
HARDENING = HardenSettings(training=ImageTraining(epochs=1, batch_size=BATCH, learning_rate=0.01))
BARE, ALL = "one attack and two forward passes", "feature_fragility of all convolutions"
AGAIN, EPOCH = "choosing layers anew, one batch, with proofs", f"CLAT, training on {TRAINED} images"
LIMIT, SHARE = 1.1, 0.02
"""Most that all fragilities may cost, in bare passes; most of training that choosing anew may take."""


def ways() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    torch.manual_seed(0)
    model: nn.Module = DigitsResNet(widths=WIDTHS).eval()
    layers = named_layers(model, "conv")
    images = load_images(DIGITS)
    x, y = (part[:TRAINED] for part in images.tensors())
    data = [{"x": a, "labels": b} for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    evidence = Evidence(model=model, data=data, loss=image_loss, granularity="conv")
    first = Evidence(model=model, data=data[:1], loss=image_loss, granularity="conv")
    attack = Pgd(SETTINGS.attack.ball, SETTINGS.steps)

    def bare() -> None:
        for one in data:
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            attacked: Tensor = attack.climbed(loss_on(model, one["labels"]), one["x"])
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            with torch.no_grad():
                model(one["x"])
                model(attacked)

    def again() -> Selection:
        fingerprints(model)  # the phase before is proved, the next begins
        fingerprints(model)
        return select(score_feature_fragility(first, layers, SETTINGS), "top:1")

    chosen = again()
    return {
        BARE: bare,
        ALL: lambda: score_feature_fragility(evidence, layers, SETTINGS),
        AGAIN: again,
        EPOCH: lambda: harden(model, chosen, x, y, HARDENING),
    }


def table(repetitions: int = 7) -> tuple[list[str], bool]:
    """Markdown lines, and whether the limits hold."""
    torch.set_num_threads(1)
    made = ways()
    times = cpu_seconds(made, repetitions)
    epochs = IMAGES / TRAINED * HARDENING.every
    ratios = cpu_ratios(times[ALL], times[BARE])
    shares = sorted(again / (epochs * train) for again, train in zip(times[AGAIN], times[EPOCH], strict=True))
    ratio, share = statistics.median(ratios), statistics.median(shares)
    seconds = {name: statistics.median(spent) for name, spent in times.items()}
    beside, amortised = f"{HARDENING.every} epochs", f"{share:.2%} ({shares[0]:.2%}, {shares[-1]:.2%})"
    lines = [
        f"Digits network of widths {WIDTHS}, {BATCHES} batches of {BATCH} images, {SETTINGS.steps} steps of PGD, fp32; "
        f"CPU seconds of one thread. Choosing anew happens every {HARDENING.every} epochs, here of {IMAGES} images.",
        "",
        "| work | seconds | beside | ratio (min, max) | allowed |",
        "|---|---|---|---|---|",
        f"| {BARE} | {seconds[BARE]:.2f} | | | |",
        f"| {ALL} | {seconds[ALL]:.2f} | the same | {ratio:.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f}) | <= {LIMIT} |",
        f"| {EPOCH} | {seconds[EPOCH]:.2f} | | | |",
        f"| {AGAIN} | {seconds[AGAIN]:.2f} | {beside} | {amortised} | < {SHARE:.0%} |",
    ]
    return lines, ratio <= LIMIT and share < SHARE


if __name__ == "__main__":
    print("\n".join(table()[0]))
