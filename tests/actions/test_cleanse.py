"""Cleansing: what changes and what does not, folding against scaling, and undoing."""

import copy

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from keylayers.actions import fingerprinting
from keylayers.actions.cleansing import Cleanse, Cleansed, cleanse
from keylayers.errors import BadInput, BadSelection, Diverged, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.layers.skips import scaled_skips
from keylayers.layers.suppressed import Suppressed
from keylayers.models.digits import DigitsResNet
from keylayers.runs import Checkpoint
from keylayers.scores import Selection
from keylayers.training.images import ImageTraining
from tests.layers.helpers import full_state, same_state

IDENTITY, PROJECTION = "layer2.1.skip", "layer2.0.shortcut"
SHORT = ImageTraining(epochs=2, batch_size=10, learning_rate=0.05)
NONE = ImageTraining(epochs=0)


def network(seed: int = 0) -> nn.Module:
    """With running statistics and affine weights of their own."""
    torch.manual_seed(seed)
    model = DigitsResNet(2, (4, 6, 8)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(20, 1, 8, 8))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model.eval()


def images(count: int = 30) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 10


def chosen(model: nn.Module, *names: str) -> Selection:
    return Selection.of(named_layers(model, "skip"), names=names)


def done(model: nn.Module, *names: str, **settings) -> Cleansed:
    return cleanse(model, chosen(model, *names), *images(), Cleanse(**{"training": SHORT, **settings}))


@pytest.mark.parametrize("name", [IDENTITY, PROJECTION])
@pytest.mark.parametrize(
    ("tune", "below"),
    [("stage", ("layer2.",)), ("block", {IDENTITY: ("layer2.1.",), PROJECTION: ("layer2.0.",)}), ("all", ("",))],
)
def test_only_the_scope_changes_its_buffers_included_and_undo_is_exact(name: str, tune: str, below) -> None:
    model, x = network(), images()[0]
    before, state = fingerprinting.fingerprints(model), full_state(model)
    with torch.no_grad():
        answers = model(x)
    result = done(model, name, tune=tune)
    changed = set(fingerprinting.changed_names(before, fingerprinting.fingerprints(result.model)))
    below = below[name] if isinstance(below, dict) else below
    silenced = {one for one in before if name == PROJECTION and one.startswith(f"{PROJECTION}.")}
    assert changed == {one for one in before if one.startswith(below)} - silenced
    assert any(one.endswith("running_mean") for one in changed) and result.untouched == len(before) - len(changed)
    assert len(result.losses) == 2 and result.trained == sum(
        p.numel() for n, p in model.named_parameters() if n.startswith(below) and n not in silenced
    )
    assert result.undo() is model
    assert fingerprinting.fingerprints(model) == before and same_state(
        state | {"random": 0}, full_state(model) | {"random": 0}
    )
    with torch.no_grad():
        assert torch.equal(model(x), answers)


def test_a_factor_of_one_without_training_changes_no_bit() -> None:
    model, x = network(), images()[0]
    before = fingerprinting.fingerprints(model)
    result = done(model, IDENTITY, factor=1.0, training=NONE)
    with torch.no_grad():
        assert torch.equal(result.model(x), model(x))
    assert fingerprinting.fingerprints(result.model) == before and result.trained > 0 and result.losses == ()


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.3])
@pytest.mark.parametrize("name", [IDENTITY, PROJECTION])
def test_the_suppression_is_scaling_and_stays_through_copies_training_flags_and_names(name: str, factor: float) -> None:
    model, x = network(), images()[0]
    result = done(model, name, factor=factor, training=NONE)
    with torch.no_grad():
        plain = model(x)
        with scaled_skips(model, [name], factor):
            scaled = model(x)
        assert torch.equal(result.model(x), scaled) and not torch.allclose(scaled, plain)
        assert torch.equal(copy.deepcopy(result.model)(x), scaled)
        assert torch.equal(Suppressed(copy.deepcopy(model), **only(result))(x), scaled)  # as after loading
    assert named_layers(result.model, "skip") == named_layers(model, "skip")
    assert result.as_dict() == {"skips": [name], "factor": factor, "folded": False}


def only(result: Cleansed) -> dict:
    return {"skips": result.as_dict()["skips"], "factor": result.as_dict()["factor"]}


def hf_resnet() -> nn.Module:
    torch.manual_seed(0)
    config = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3, num_channels=1
    )
    model = hf.ResNetForImageClassification(config).train()
    model(torch.rand(8, 1, 16, 16))
    return model.eval()


class OneMap(nn.Module):
    """A projection that is one convolution with a bias, and one that ends in a rectifier."""

    def __init__(self, *ends: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(OneBlock(4, 4 + 2 * i, *ends) for i in (1, 0))
        self.blocks[1].shortcut, self.blocks[1].a = (
            nn.Sequential(nn.Conv2d(6, 4, 1), *ends),
            nn.Conv2d(6, 4, 3, padding=1),
        )
        self.fc = nn.Linear(4, 10)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"x": torch.zeros(1, 1, 8, 8)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class OneBlock(nn.Module):
    def __init__(self, d_in: int, d_out: int, *ends: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(d_in, d_out, 3, padding=1), nn.Conv2d(d_out, d_out, 3, padding=1)
        self.shortcut = nn.Sequential(nn.Conv2d(d_in, d_out, 1), *ends)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) + self.shortcut(x)


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.3])
@pytest.mark.parametrize("make", [network, hf_resnet, OneMap])
def test_folding_a_projection_is_scaling_it_and_undo_is_exact(make, factor: float) -> None:
    """Exact: at 0 nothing is left of it, a power of 2 changes no mantissa, else to rounding."""
    model = make().eval()
    name = next(layer.name for layer in named_layers(model, "skip") if layer.parameters)
    x, y = (torch.rand(12, 1, 16, 16), torch.arange(12) % 3) if make is hf_resnet else images()
    before = fingerprinting.fingerprints(model)

    def logits() -> Tensor:
        out = model(x)
        return out if isinstance(out, Tensor) else out.logits

    with torch.no_grad(), scaled_skips(model, [name], factor):
        scaled = logits()
    result = cleanse(model, chosen(model, name), x, y, Cleanse(factor, fold=True, training=NONE))
    assert result.model is model and result.folded
    with torch.no_grad():
        assert torch.equal(logits(), scaled) if factor != 0.3 else torch.allclose(logits(), scaled, atol=1e-5)
    changed = fingerprinting.changed_names(before, fingerprinting.fingerprints(model))
    assert len(changed) in (1, 2) and all(one.startswith(f"{name}.") for one in changed)
    result.undo()
    assert fingerprinting.fingerprints(model) == before


def test_a_fold_after_training_is_the_wrapper_after_the_same_training() -> None:
    x, y = images()
    answers = []
    for fold in (False, True):
        model = network()
        result = cleanse(model, chosen(model, PROJECTION), x, y, Cleanse(fold=fold, training=SHORT))
        with torch.no_grad():
            answers.append(result.model(x))
    assert torch.equal(*answers)


class FixedSize(nn.Module):
    """Takes 8 x 8 images alone, which nothing but its last map says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, image: Tensor) -> Tensor:
        entering = self.stem(image)
        return self.head((torch.relu(self.inner(entering)) + entering).flatten(1))


def test_a_network_of_one_input_size_is_cleansed_by_the_images_it_is_given() -> None:
    torch.manual_seed(0)
    model, (x, y) = FixedSize().eval(), images()
    layers = named_layers(model, "skip", example={"image": x[:1]})
    found = cleanse(model, Selection.of(layers, names=["skip"], allow_total=True), x, y, Cleanse(training=SHORT))
    inside = model.stem(x)
    expected = model.head(torch.relu(model.inner(inside)).flatten(1))
    assert torch.allclose(found.model(x), expected, atol=1e-6)
    again = copy.deepcopy(Suppressed(model, ["skip"]))
    assert torch.equal(again(image=x), found.model(x)) and torch.equal(again(x[:3]), found.model(x[:3]))


def test_a_cleansing_that_was_stopped_ends_as_if_it_had_not_been(tmp_path) -> None:
    """Momenta and dropout's random numbers included; what was stopped left the network as it was."""

    def cleansed(keeps=None, until: int = 9, model: nn.Module | None = None) -> tuple[Cleansed, nn.Module]:
        model = model or network()

        def report(done: int, total: int, loss: float) -> None:
            if done > until:
                raise KeyboardInterrupt

        given = Cleanse(training=ImageTraining(epochs=3, batch_size=10, learning_rate=0.05))
        return cleanse(model, chosen(model, IDENTITY), *images(), given, report=report, keeps=keeps), model

    whole, model = cleansed()
    stopped = network()
    with pytest.raises(KeyboardInterrupt):
        cleansed(Checkpoint(tmp_path), until=1, model=stopped)
    assert fingerprinting.fingerprints(stopped) == fingerprinting.fingerprints(network())
    resumed, again = cleansed(Checkpoint(tmp_path))
    assert fingerprinting.fingerprints(model) == fingerprinting.fingerprints(again) and resumed.losses == whole.losses
    assert resumed.untouched == whole.untouched


def test_an_error_leaves_everything_as_it_was() -> None:
    model = network()
    before = full_state(model)
    with pytest.raises(Diverged):
        done(model, IDENTITY, training=ImageTraining(epochs=3, batch_size=10, learning_rate=1e30))
    assert same_state(before, full_state(model))


def test_what_cannot_be_cleansed_is_refused_with_the_reason() -> None:
    model, (x, y) = network(), images()
    skips = chosen(model, IDENTITY)
    with pytest.raises(BadInput, match=r"clean images: class 9 has no image \(1 of 10 classes have none\)"):
        cleanse(model, skips, x[y < 9], y[y < 9])
    with pytest.raises(BadInput, match=r"clean images: label 10 is out of range \(3 such\)"):
        cleanse(model, skips, x, y + 1)
    with pytest.raises(BadInput, match="30 images and 29 labels"):
        cleanse(model, skips, x, y[1:])
    with pytest.raises(BadInput, match="no clean image"):
        cleanse(model, skips, x[:0], y[:0])
    with pytest.raises(BadInput, match=r"factor=1.5`: expected a number"):
        done(model, IDENTITY, factor=1.5)
    with pytest.raises(UnknownName, match="unknown value of `tune` 'stages'; did you mean 'stage'"):
        done(model, IDENTITY, tune="stages")
    with pytest.raises(BadInput, match=r"layer2.1.skip is an identity: it has no weight"):
        done(model, IDENTITY, fold=True)
    with pytest.raises(
        BadSelection, match=r"1 of 1 selected layers are no skips of this network, first layer1.0.conv1"
    ):
        conv = Selection.of(named_layers(model, "conv"), names=["layer1.0.conv1"])
        cleanse(model, conv, x, y)
    bent = OneMap(nn.ReLU()).eval()
    with torch.no_grad():
        bent.blocks[0].shortcut[0].bias.fill_(5.0)
    straight = done(bent, "blocks.0.shortcut", fold=True, training=NONE)  # a rectifier is positively homogeneous
    assert straight.folded
    with pytest.raises(BadInput, match=r"blocks.0.shortcut does not follow the weights of blocks.0.shortcut.0 in prop"):
        done(OneMap(nn.Sigmoid()).eval(), "blocks.0.shortcut", fold=True, training=NONE)
    with pytest.raises(BadInput, match="has no skip connection"):
        cleanse(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), skips, x, y)
