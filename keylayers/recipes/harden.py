"""Hardening a network of images: adversarial training of few layers, the most fragile or others, chosen anew or not."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from torch import nn

from keylayers.actions.hardening import Hardened, HardenSettings, harden
from keylayers.criteria.feature_fragility import FeatureFragility, score_feature_fragility
from keylayers.criteria.protocol import Evidence
from keylayers.data.images import Images
from keylayers.errors import BadInput
from keylayers.inputs.images import ImageInputs, example_of
from keylayers.inputs.networks import epochs_done, look_at, shown, store_network
from keylayers.layers.naming import named_layers
from keylayers.measures.attacks import FeatureAttack, Pgd
from keylayers.measures.backdoor import check_no_class_empty
from keylayers.measures.masking import sanity
from keylayers.measures.objective import image_loss
from keylayers.measures.robustness import clean_accuracy, robust_accuracy, worst_case
from keylayers.models.pixels import image_argument
from keylayers.runs import Progress, RunFolder, note
from keylayers.scores import LayerScores, Selection, parse, select
from keylayers.scores.caveats import list_caveats
from keylayers.settings import Settings

TRAINED, CALIBRATION = 0.7, 0.1
"""Of the images; the rest tests."""
CHOSEN_ON = 128  # training images that layers are chosen on, drawn with the seed
CHECKED_ON = 100  # test images that signs of a failed attack are looked for on, drawn with it too
TEST_STEPS, RESTARTS = 20, 2
TRAINING = "training"
"""Name of the loop whose state is kept."""


@dataclass(frozen=True)
class HardenRequest(Settings):
    """What to harden, and how. Raises BadInput for settings without an epoch or an attack's step."""

    inputs: ImageInputs
    select: str = "top:5%"
    """Policy over the layers; by fragility where it asks for scores and none are given."""
    granularity: str = "conv"
    again: bool = True
    """Whether layers are chosen anew as training goes on; not with given scores."""
    settings: HardenSettings = field(default_factory=HardenSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settings.training.epochs < 1:
            raise BadInput(f"hardening for {self.settings.training.epochs} epochs changes nothing; give at least 1.")
        if self.settings.attack.steps < 1:
            raise BadInput(
                f"attacks of {self.settings.attack.steps} steps (`steps`) move no image; give at least 1, such as 10."
            )


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
    losses: tuple[float, ...]
    """Of training, by epoch."""
    watched: tuple[float, ...]
    """Robust accuracy on calibration images after each epoch."""
    images: int
    """Held out, on which accuracies are measured."""
    trained: int
    """Scalars that trained at first."""
    untouched: int
    warnings: tuple[str, ...]
    """What suggests that attacks fail, rather than that the network holds."""


def harden_network(request: HardenRequest, run: RunFolder, scores: LayerScores | None = None) -> HardenResult:
    """Chooses layers, trains them, stores the last and the best weights; goes on after the last epoch that was done.

    Raises:
        BadInput: as the data, the criterion and the action do.
    """
    found = run.part("result", lambda: asdict(_hardened(request, run, scores)))
    run.checkpoint(TRAINING).clear()
    selections = tuple((epoch, tuple(names)) for epoch, names in found["selections"])
    told = {name: tuple(found[name]) for name in ("losses", "watched", "warnings")}
    return HardenResult(**{**found, **told, "selections": selections})


def _hardened(request: HardenRequest, run: RunFolder, scores: LayerScores | None) -> HardenResult:
    policy = parse(request.select)
    train, calibration, test = request.inputs.parts(TRAINED, CALIBRATION)
    model = request.inputs.load_model()
    classes = look_at(model, train, request.inputs.model, request.inputs.seed)
    check_no_class_empty(train.tensors()[1], classes, f"the training images of {request.inputs.images}")
    attack = request.settings.attack
    seed = request.inputs.seed
    choose = _chooser(request, train, model, scores)
    note(f"measuring on {len(test)} held-out images")
    before = run.part("before", lambda: _measured(model, test, attack, seed)[0])
    first = choose(model)
    for caveat in list_caveats(first):
        note(caveat)
    note(f"training {', '.join(first.names[:5])}{' and others' if len(first) > 5 else ''}, chosen by {policy}")
    again = choose if request.again and scores is None else None

    def watch(network: nn.Module) -> float:
        return robust_accuracy(network, *calibration.tensors(), attack).accuracy

    keeps = run.checkpoint(TRAINING)
    with Progress[int](request.settings.training.epochs, "epochs", start=epochs_done(keeps)) as bar:
        told = {"watch": watch, "report": shown(bar), "keeps": keeps}
        made = harden(model, first, *train.tensors(), request.settings, reselect=again, **told)  # type: ignore[arg-type]
    store_network(model, run.path / "last.safetensors")
    assert made.best is not None and made.best_epoch is not None
    store_network(model, run.path / "best.safetensors", dict(made.best))
    note(f"measuring on {len(test)} held-out images")
    last, warnings = _measured(model, test, attack, seed)
    model.load_state_dict(dict(made.best))
    best, _ = _measured(model, test, attack, seed)
    return HardenResult(
        _names(made), before, last, best, made.best_epoch, tuple(made.losses), tuple(made.watched), len(test),
        sum(layer.size for layer in first.chosen), made.untouched, warnings,
    )  # fmt: skip


def _chooser(
    request: HardenRequest, train: Images, model: nn.Module, scores: LayerScores | None
) -> Callable[[nn.Module], Selection]:
    (batch,) = train.drawn(CHOSEN_ON, request.inputs.seed).batches(CHOSEN_ON, image_argument(model))
    layers = named_layers(model, request.granularity, example=example_of(model, batch))
    if len(layers) < 2:
        raise BadInput(
            f"{request.inputs.model} has {len(layers)} layer of granularity {request.granularity}: there is nothing to "
            "choose among; give another, such as `granularity=linear` or block."
        )
    ball = request.settings.attack.ball
    if scores is None and ball.norm != "linf":
        raise BadInput(f"layers are chosen by fragility under linf attacks, not {ball.norm}; give scores instead.")

    def choose(model: nn.Module) -> Selection:
        if scores is not None:
            return select(scores, request.select)
        evidence = Evidence(model=model, data=[batch], loss=image_loss, granularity=request.granularity)
        settings = FeatureFragility(ball.eps, request.settings.attack.steps)
        return select(score_feature_fragility(evidence, layers, settings), request.select)

    return choose


def _names(made: Hardened) -> tuple[tuple[int, tuple[str, ...]], ...]:
    return tuple((epoch, tuple(selection.names)) for epoch, selection in made.selections)


def _stages(model: nn.Module) -> tuple[str, ...]:
    """Layers whose features are attacked: blocks, or all linear maps and convolutions where there are none."""
    try:
        return tuple(layer.name for layer in named_layers(model, "block"))
    except BadInput:
        return tuple(name for name, one in model.named_modules() if isinstance(one, nn.Linear | nn.Conv2d))


def _measured(model: nn.Module, images: Images, attack: Pgd, seed: int) -> tuple[dict[str, float], tuple[str, ...]]:
    x, y = images.tensors()
    loss = Pgd(attack.ball, TEST_STEPS, restarts=RESTARTS, seed=1)
    features = FeatureAttack(_stages(model), Pgd(attack.ball, TEST_STEPS))
    found = [robust_accuracy(model, x, y, one) for one in (loss, features)]
    figures = {
        "clean": clean_accuracy(model, x, y).accuracy,
        loss.name: found[0].accuracy,
        "features": found[1].accuracy,
        "worst case": worst_case(*found).accuracy,
    }
    flags = sanity(model, *images.drawn(CHECKED_ON, seed).tensors(), loss)
    return figures, tuple(flags.raised.values())
