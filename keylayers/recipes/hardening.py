"""Hardening a network of images: adversarial training of few layers, the most fragile or others, chosen anew or not."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from keylayers.actions.harden import Hardened, HardenSettings, harden
from keylayers.criteria.criterion import Evidence
from keylayers.criteria.feature_fragility import FeatureFragility, feature_fragility
from keylayers.data.images import Images
from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.measures.attacks import FeatureAttack, Pgd
from keylayers.measures.masking import sanity
from keylayers.measures.objective import image_loss
from keylayers.measures.robustness import clean_accuracy, robust_accuracy, worst_case
from keylayers.models.pixels import image_argument
from keylayers.recipes.image_inputs import ImageInputs, example_of
from keylayers.runs import RunFolder, note, write_tensors
from keylayers.scores import LayerScores, Selection, parse, select
from keylayers.training.train import Report

TRAINED, CALIBRATION = 0.7, 0.1
"""Of the images; the rest tests."""
CHOSEN_ON = 128  # training images that layers are chosen on, drawn with the seed
CHECKED_ON = 100  # test images that signs of a failed attack are looked for on, drawn with it too
TEST_STEPS, RESTARTS = 20, 2


@dataclass(frozen=True)
class HardenRequest:
    """What to harden, and how. Raises BadInput for settings without an epoch."""

    inputs: ImageInputs
    select: str = "top:5%"
    """Policy over the layers; by fragility where it asks for scores and none are given."""
    granularity: str = "conv"
    again: bool = True
    """Whether layers are chosen anew as training goes on; not with given scores."""
    settings: HardenSettings = field(default_factory=HardenSettings)

    def __post_init__(self) -> None:
        if self.settings.training.epochs < 1:
            raise BadInput(f"hardening for {self.settings.training.epochs} epochs changes nothing; give at least 1.")


@dataclass(frozen=True)
class HardenResult:
    """What was done and what it brought, on images held out of it and used once."""

    selections: tuple[tuple[int, tuple[str, ...]], ...]
    """From which epoch on which layers trained."""
    before: dict[str, float]
    """Accuracy: clean, under attacks on the loss and on features, and under the worst of them."""
    last: dict[str, float]
    best: dict[str, float]
    """At the epoch of highest robust accuracy on calibration images."""
    best_epoch: int
    trained: int
    """Scalars that trained at first."""
    untouched: int
    warnings: tuple[str, ...]
    """What suggests that attacks fail, rather than that the network holds."""


def harden_network(
    request: HardenRequest, run: RunFolder, scores: LayerScores | None = None, report: Report | None = None
) -> HardenResult:
    """Chooses layers, trains them, stores the last and the best weights.

    Raises:
        BadInput: as the data, the criterion and the action do.
    """
    policy = parse(request.select)
    train, calibration, test = request.inputs.parts(TRAINED, CALIBRATION)
    model = request.inputs.load_model()
    attack = request.settings.attack
    seed = request.inputs.seed
    choose = _chooser(request, train, model, scores)
    before, _ = _measured(model, test, attack, seed)
    first = choose(model)
    note(f"training {', '.join(first.names[:5])}{' and others' if len(first) > 5 else ''}, chosen by {policy}")
    again = choose if request.again and scores is None else None

    def watch(network: nn.Module) -> float:
        return robust_accuracy(network, *calibration.tensors(), attack).accuracy

    made = harden(model, first, *train.tensors(), request.settings, reselect=again, watch=watch, report=report)
    last, warnings = _measured(model, test, attack, seed)
    write_tensors(run.path / "last.safetensors", dict(model.state_dict()))
    assert made.best is not None and made.best_epoch is not None
    write_tensors(run.path / "best.safetensors", made.best)
    model.load_state_dict(dict(made.best))
    best, _ = _measured(model, test, attack, seed)
    return HardenResult(
        _names(made), before, last, best, made.best_epoch, sum(layer.size for layer in first.chosen), made.untouched,
        warnings,
    )  # fmt: skip


def _chooser(
    request: HardenRequest, train: Images, model: nn.Module, scores: LayerScores | None
) -> Callable[[nn.Module], Selection]:
    (batch,) = train.drawn(CHOSEN_ON, request.inputs.seed).batches(CHOSEN_ON, image_argument(model))
    layers = named_layers(model, request.granularity, example=example_of(model, batch))
    ball = request.settings.attack.ball

    def choose(model: nn.Module) -> Selection:
        if scores is not None:
            return select(scores, request.select)
        evidence = Evidence(model=model, data=[batch], loss=image_loss, granularity=request.granularity)
        settings = FeatureFragility(ball.eps, request.settings.attack.steps)
        return select(feature_fragility(evidence, layers, settings), request.select)

    return choose


def _names(made: Hardened) -> tuple[tuple[int, tuple[str, ...]], ...]:
    return tuple((epoch, tuple(selection.names)) for epoch, selection in made.selections)


def _measured(model: nn.Module, images: Images, attack: Pgd, seed: int) -> tuple[dict[str, float], tuple[str, ...]]:
    x, y = images.tensors()
    loss = Pgd(attack.ball, TEST_STEPS, restarts=RESTARTS, seed=1)
    blocks = tuple(layer.name for layer in named_layers(model, "block"))
    features = FeatureAttack(blocks, Pgd(attack.ball, TEST_STEPS))
    found = [robust_accuracy(model, x, y, one) for one in (loss, features)]
    figures = {
        "clean": clean_accuracy(model, x, y).accuracy,
        loss.name: found[0].accuracy,
        "features": found[1].accuracy,
        "worst case": worst_case(*found).accuracy,
    }
    flags = sanity(model, *images.drawn(CHECKED_ON, seed).tensors(), loss)
    return figures, tuple(flags.raised.values())
