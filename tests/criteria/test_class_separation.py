"""Cohesion of classes against features held at once and rows really removed; layers of interest by hand; refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.criteria.class_separation import ClassSeparation, layers_of_interest, score_class_separation
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.hidden_states import HiddenStates
from keylayers.errors import BadInput, Diverged, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.measures.features import is_text, rows_at
from keylayers.measures.objective import image_loss, language_loss
from keylayers.scores.scores import LayerScores
from tests import tiny_models
from tests.criteria.streams import mixing, stream
from tests.matrix.test_criteria import State


def pictures(count: int = 14, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 32, 32, generator=generator), torch.arange(count) % classes


def image_evidence(size: int = 5, **more: Any) -> tuple[Evidence, tuple[Layer, ...]]:
    model = tiny_models.build("cifar-resnet")
    x, y = pictures(**more)
    data = [{"x": a, "labels": b} for a, b in zip(x.split(size), y.split(size), strict=True)]
    return Evidence(model=model, data=data, loss=image_loss, granularity="block"), named_layers(model, "block")


def dense_features(model: nn.Module, x: Tensor, layers: tuple[Layer, ...]) -> list[np.ndarray]:
    """What enters the first layer and leaves each, of all images at once, flattened; the package's capture not used."""
    kept: dict[str, Tensor] = {}
    hooks = []
    for layer in layers:
        module = model.get_submodule(layer.name)
        hooks.append(
            module.register_forward_hook(
                lambda module, args, output, name=layer.name: kept.update({name: output, f"before {name}": args[0]})
            )
        )
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    found = [kept[f"before {layers[0].name}"], *(kept[layer.name] for layer in layers)]
    return [one.flatten(1).double().numpy() for one in found]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("size", [1, 5, 14])
def test_streamed_scores_are_those_of_features_held_at_once(size: int, leave_one_out: bool) -> None:
    evidence, layers = image_evidence(size)
    assert evidence.model is not None
    scores = score_class_separation(evidence, layers, ClassSeparation(leave_one_out=leave_one_out))
    x, y = pictures()
    features, labels = dense_features(evidence.model, x, layers), y.numpy()
    each = []
    for one in range(3):
        members, cohesion = np.flatnonzero(labels == one), []
        for rows in features:
            others = [members[members != row] if leave_one_out else members for row in members]
            cohesion.append(
                np.mean([cosine(rows[row], rows[rest].mean(0)) for row, rest in zip(members, others, strict=True)])
            )
        each.append(np.diff(cohesion))
        assert scores.groups is not None
        np.testing.assert_allclose(scores.groups[str(one)], each[-1], atol=1e-6)
    np.testing.assert_allclose(scores.values, np.mean(each, 0), atol=1e-6)
    assert scores.bounds is not None and (scores.bounds[:, 0] < scores.values).all()
    assert scores.provenance.settings["left_out"] == {}


def planted(place: int, blocks: int = 6) -> tuple[Evidence, tuple[Layer, ...]]:
    """Records whose first axes say the class, faintly; one block makes those axes loud."""
    generator = torch.Generator().manual_seed(5)
    classes = torch.arange(30) % 3
    hidden = torch.randn(30, 4, 8, generator=generator, dtype=torch.float64)
    hidden[..., :3] = nn.functional.one_hot(classes, 3)[:, None].double()
    loud = torch.tensor([8.0] * 3 + [1.0] * 5, dtype=torch.float64)
    doings = [mixing(0.01, seed=20 + index) for index in range(blocks)]
    doings[place] = lambda states: states * loud
    evidence, layers = stream(doings, hidden)
    assert evidence.data is not None
    for batch, of in zip(evidence.data, classes.split(4), strict=True):
        batch["classes"] = of  # type: ignore[index]
    return evidence, layers


@pytest.mark.parametrize("place", [3, 4, 5])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_planted_layer_that_draws_classes_together_is_every_class_s_layer_of_interest(place: int, position) -> None:
    evidence, layers = planted(place)
    scores = score_class_separation(evidence, layers, ClassSeparation(position=position))
    assert scores.order()[0] == place and scores.values[place] > 5 * np.sort(scores.values)[-2]
    if place > 3:  # above the middle of six
        found = layers_of_interest(scores, weights="entering")
        assert all(one.weights is not None and one.weights.argmax() == place for one in found.values())
        assert len(found) == 3 and all(layers[place].name in one.policy for one in found.values())


def by_hand(*groups: list[float]) -> LayerScores:
    layers = tuple(Layer(f"layers.{index}", index, "block", (f"w{index}",), 1) for index in range(len(groups[0])))
    named = {str(index): np.array(one) for index, one in enumerate(groups)}
    return LayerScores(layers, np.mean(groups, 0), "class_separation", "block", groups=named)


def weights_of(scores: LayerScores, one: int = 0, **more: Any) -> list[float]:
    weights = layers_of_interest(scores, **more)[one].weights
    assert weights is not None
    return weights.tolist()


def test_weights_of_the_layers_of_interest_by_hand() -> None:
    first, last = [0.9, 0.1, 0.3, -0.2, 0.5, 0.4], [0.0, 0.2, 0.1, 0.3, 0.6, 0.7]
    scores = by_hand(first, last)
    # Class 0: the largest rise above the middle enters layer 4; d_2, d_3, d_4 are the rises across 3, 4, 5.
    assert weights_of(scores) == [0, 0, 0, 0.5, 0.4, 0]
    assert weights_of(scores, clamped=False) == [0, 0, -0.2, 0.5, 0.4, 0]
    assert weights_of(scores, weights="entering") == [0, 0, 0.3, 0, 0.5, 0]
    # Class 1: layer 5, which nothing follows.
    assert weights_of(scores, 1) == [0, 0, 0, 0.6, 0.7, 0]
    # The released code: class 0's layers with the d_l of class 1, which its loop happened to end with.
    assert weights_of(scores, weights="released") == [0, 0, 0.3, 0.6, 0.7, 0]
    assert weights_of(scores, 1, weights="released") == weights_of(scores, 1)
    assert weights_of(scores, layers=1, weights="entering") == [0, 0, 0, 0, 0.5, 0]
    assert layers_of_interest(scores)[0].names == ("layers.3", "layers.4")


@pytest.mark.parametrize(("count", "first"), [(6, 3), (7, 4), (8, 4), (10, 5)])
def test_with_a_stem_the_middle_is_that_of_the_released_list(count: int, first: int) -> None:
    """The notebook's list is the stem and what follows: of count + 1 layers it looks above place (count + 1) // 2."""
    listed = count + 1
    assert first == listed // 2 + 1 - 1  # one place less where the stem is not listed
    for place in range(first - 1, count):
        rise = [0.5 if index == place else 0.01 * index for index in range(count)]
        found = layers_of_interest(by_hand(rise, rise), layers=1, weights="entering", stem=True)
        assert (found[0].names == (f"layers.{place}",)) == (place >= first)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("weights", ["entering", "leaving", "released"])
@pytest.mark.parametrize("clamped", [True, False])
def test_shallow_networks_have_layers_of_interest_too(count: int, weights, clamped: bool) -> None:
    for rise in ([0.1] * count, [-0.1] * count):
        for layers in (1, 3, 9):
            found = layers_of_interest(by_hand(rise, rise), layers=layers, weights=weights, clamped=clamped)
            for one in found.values():
                assert one.weights is not None and 1 <= len(one) <= min(count, layers) and one.weights.any()


def test_what_is_no_class_score_is_refused() -> None:
    scores = by_hand([0.1, 0.2], [0.2, 0.1])
    with pytest.raises(UnknownName, match="unknown weights of layers of interest 'leaveing'; did you mean 'leaving'"):
        layers_of_interest(scores, weights="leaveing")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="expected at least 1 layer"):
        layers_of_interest(scores, layers=0)
    bare = LayerScores(scores.layers, scores.values, "random", "block")
    with pytest.raises(BadInput, match="'random' scores of 0 classes"):
        layers_of_interest(bare)


def test_classes_as_predicted_are_the_networks_own() -> None:
    """As released: records are sorted by what the network says, whatever their labels."""
    evidence, layers = image_evidence()
    assert evidence.model is not None and evidence.data is not None
    with torch.no_grad():
        relabelled = [{**batch, "labels": evidence.model(batch["x"]).argmax(1)} for batch in evidence.data]
    wanted = score_class_separation(Evidence(model=evidence.model, data=relabelled, loss=image_loss), layers)
    found = score_class_separation(evidence, layers, ClassSeparation(classes="predicted"))
    np.testing.assert_array_equal(found.values, wanted.values)


@pytest.mark.parametrize("name", tiny_models.CAUSAL)
def test_language_models_are_scored_on_records_with_classes(name: str) -> None:
    model = tiny_models.build(name)
    data = []
    for seed in range(2):
        batch = tiny_models.inputs(name, batch=6, seq=8, seed=seed)
        batch["labels"][:, :5] = -100
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        data.append({**batch, "classes": torch.arange(6) % 2})
    layers = named_layers(model, "block")
    before = State.of(model)
    scores = score_class_separation(Evidence(model=model, data=data, loss=language_loss, granularity="block"), layers)
    before.assert_same(State.of(model))
    assert np.isfinite(scores.values).all() and set(scores.groups or ()) == {"0", "1"}


@pytest.mark.parametrize("position", ["prompt", "last", "mean"])
def test_positions_are_those_of_the_other_criteria_of_hidden_states(position) -> None:
    model = tiny_models.build("llama")
    batch = tiny_models.inputs("llama", batch=4, seq=9)
    batch["attention_mask"] = (torch.arange(9) < torch.tensor([9, 7, 5, 9])[:, None]).long()
    batch["labels"][batch["attention_mask"] == 0] = -100
    batch["labels"][:, :3] = -100
    batch["labels"][3] = -100  # nothing to answer
    blocks = named_layers(model, "block")
    with torch.no_grad(), capture(model, blocks) as captured:
        model(**{key: value for key, value in batch.items() if key != "labels"})
    seen = HiddenStates(model, batch, blocks, captured)
    assert is_text(batch)
    for place, layer in enumerate(blocks):
        ours = rows_at(captured.outputs[layer.name], batch, position, layer.name)
        torch.testing.assert_close(ours, seen.rows(place, "after", position))


def test_a_class_of_one_record_is_left_out_and_said_to_be() -> None:
    evidence, layers = image_evidence(count=7, classes=6)  # only class 0 has two
    scores = score_class_separation(evidence, layers)
    assert set(scores.groups or ()) == {"0"}
    assert scores.provenance.settings["left_out"] == {str(one): 1 for one in range(1, 6)}
    evidence, layers = image_evidence(count=4, classes=4)
    with pytest.raises(BadInput, match="no class has 2 records among 4"):
        score_class_separation(evidence, layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 10, 1])}, r"labels has class 10 for record 2 \(1 such\).* 0 to 9"),
        ({"labels": torch.tensor([0, -1, 0, 1])}, r"'labels'\] has class -1 for record 1"),
        ({"labels": torch.tensor([0, 1, 1])}, r"shape \(3,\); expected one whole number for each of 4 records"),
        ({"labels": torch.ones(4)}, "is float32 of shape"),
        ({"labels": torch.ones(4, 2, dtype=torch.long)}, "the data says no class"),
        ({"x": torch.rand(4, 3, 32, 32) * 2}, r"images reach from .* expected \[0, 1\]"),
        ({"x": torch.rand(4, 1, 32, 32)}, r"expected \(batch, 3, height, width\)"),
    ],
)
def test_bad_images_and_labels_are_refused_and_the_model_is_left_as_found(change: dict, message: str) -> None:
    evidence, layers = image_evidence(4, count=8, classes=2)
    assert evidence.model is not None and evidence.data is not None
    good, bad = evidence.data[0], {**evidence.data[1], **change}
    evidence.model.train()
    before = State.of(evidence.model)
    with pytest.raises(BadInput, match=message):
        score_class_separation(Evidence(model=evidence.model, data=[good, bad], loss=image_loss), layers)
    before.assert_same(State.of(evidence.model))


def test_other_refusals() -> None:
    evidence, layers = image_evidence()
    with pytest.raises(UnknownName, match="unknown class_separation position 'lst'; did you mean 'last'"):
        score_class_separation(evidence, layers, ClassSeparation(position="lst"))  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="class_separation classes 'label'"):
        score_class_separation(evidence, layers, ClassSeparation(classes="label"))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="position='last' asks for a token, and images have none"):
        score_class_separation(evidence, layers, ClassSeparation(position="last"))
    text, blocks = planted(4)
    with pytest.raises(BadInput, match="predicts no class of a text"):
        score_class_separation(text, blocks, ClassSeparation(classes="predicted"))
    with pytest.raises(BadInput, match="position='flat'; texts have features"):
        score_class_separation(text, blocks, ClassSeparation(position="flat"))
    broken, blocks = stream([lambda hidden: hidden / 0], torch.randn(4, 3, 8))
    assert broken.data is not None
    broken.data[0]["classes"] = torch.tensor([0, 0, 1, 1])  # type: ignore[index]
    with pytest.raises(Diverged, match=r"features of layer layers\.0 are not finite"):
        score_class_separation(broken, blocks)
