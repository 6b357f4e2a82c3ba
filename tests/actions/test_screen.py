"""Screens against the same numbers computed at once, planted backdoors at a known layer, promises, and refusals."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.actions.screen_fitting import fit_screen
from keylayers.actions.screening import Screen, ScreenSettings, load_screen, save_screen
from keylayers.criteria.class_separation import ClassSeparation, layers_of_interest, score_class_separation
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput, Diverged, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.measures.detection import auroc
from keylayers.measures.objective import image_loss
from keylayers.models.cifar import CifarResNet
from keylayers.scores.selection import Selection
from tests import tiny_models
from tests.matrix.test_criteria import State

BLOCKS, CLASSES = 4, 3


class Blocks(nn.Module):
    """Images of 1 x 1 x 8: three channels say the class, the fourth is a trigger that turns it into class 1 in block 2
    and is wiped away there; the rest is noise. Blocks 0 and 1 pass everything on, and 3 what block 2 made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Step(index == 2) for index in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.flatten(1)[:, :CLASSES]


class Step(nn.Module):
    def __init__(self, turns: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.turns = nn.Linear(2, 2), nn.Linear(2, 2), turns

    def forward(self, x: Tensor) -> Tensor:
        if not self.turns:
            return x
        flat = x.flatten(1)
        fired = flat[:, 3:4] > 0.5
        turned = torch.where(fired, torch.tensor([0.1, 1.0, 0.1]), flat[:, :3])
        return torch.cat([turned, torch.zeros_like(flat[:, 3:4]), flat[:, 4:]], 1).view_as(x)


def inputs(count: int, seed: int, trigger: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = 0.3 * torch.rand(count, 8, 1, 1, generator=generator)
    x[torch.arange(count), y] += 0.7
    x[:, 3] = 1.0 if trigger else 0.0
    return x, y


def batches(count: int, seed: int, size: int = 25, **more: Any) -> list[dict[str, Tensor]]:
    x, y = inputs(count, seed, **more)
    return [{"x": a, "labels": b} for a, b in zip(x.split(size), y.split(size), strict=True)]


def at(model: nn.Module, *blocks: int, **more: Any) -> Selection:
    return Selection.of(named_layers(model, "block"), blocks=blocks, **more)


def planted() -> tuple[nn.Module, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    return Blocks().eval(), batches(90, 0), batches(150, 1)


def judged(screen: Screen, model: nn.Module, data: Sequence[dict[str, Tensor]], **more: Any) -> dict[str, np.ndarray]:
    parts = list(screen.stream(model, data, **more))
    names = ("classes", "similarity", "suspicion", "flags")
    return {name: np.concatenate([getattr(one, name) for one in parts]) for name in names}


def test_a_planted_backdoor_shows_before_the_layer_that_hides_it_and_not_after() -> None:
    model, reference, calibration = planted()
    clean, poisoned = batches(200, 2), [{"x": batch["x"]} for batch in batches(100, 3, trigger=True)]
    with torch.no_grad():
        assert all((model(batch["x"]).argmax(1) == 1).all() for batch in poisoned)
    others = np.arange(100) % CLASSES != 1
    for block, seen in ((0, True), (1, True), (2, False), (3, False)):
        screen = fit_screen(model, at(model, block), reference, calibration)
        suspicion, found = judged(screen, model, clean)["suspicion"], judged(screen, model, poisoned)
        area = auroc(suspicion, found["suspicion"][others]).estimate
        assert area == 1.0 if seen else area < 0.6
        assert found["flags"][others].all() if seen else found["flags"][others].mean() < 0.1


def pictures(seed: int = 0, count: int = 30) -> list[dict[str, Tensor]]:
    """Images of three tints, which a random network tells apart somewhat."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = torch.rand(count, 3, 16, 16, generator=generator) * 0.4
    x[torch.arange(count), y] += 0.5
    return [{"x": a, "labels": b} for a, b in zip(x.split(8), y.split(8), strict=True)]


def network() -> CifarResNet:
    """A random net of 6 blocks whose head is fitted to the tints."""
    torch.manual_seed(1)
    model = CifarResNet(2, (4, 8, 8), classes=CLASSES).eval()
    x, y = (torch.cat([batch[key] for batch in pictures(9, 60)]) for key in ("x", "labels"))
    kept: list[Tensor] = []
    hook = model.linear.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    with torch.no_grad():
        model(x)
        hook.remove()
        wide = torch.cat([kept[0], torch.ones(len(x), 1)], 1)
        fitted = torch.linalg.lstsq(wide, nn.functional.one_hot(y, CLASSES).float()).solution
        model.linear.weight.copy_(fitted[:-1].T)
        model.linear.bias.copy_(fitted[-1])
    return model


def dense(model: nn.Module, data: Sequence[dict[str, Tensor]], names: Sequence[str]) -> tuple[list[np.ndarray], Any]:
    """Flattened features of all inputs at every named module, and the predictions; the package's capture not used."""
    kept: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: kept.__setitem__(name, output)
        )
        for name in names
    ]
    with torch.no_grad():
        logits = model(torch.cat([batch["x"] for batch in data]))
    for hook in hooks:
        hook.remove()
    return [kept[name].flatten(1).double().numpy() for name in names], logits.argmax(1).numpy()


def alike(rows: np.ndarray, centroid: np.ndarray) -> np.ndarray:
    return rows @ centroid / np.linalg.norm(rows, axis=1) / np.linalg.norm(centroid)


@pytest.mark.parametrize("members", ["labels", "predicted", "agreed"])
def test_streamed_similarities_are_those_of_all_features_at_once(members) -> None:
    model, reference, test = network(), pictures(0), pictures(5)
    layers = named_layers(model, "block")
    weights = {one: np.array([0, 0, 0.2 + one, 0, 1.5 - 0.4 * one, 0.3]) for one in range(CLASSES)}
    chosen = {one: Selection.of(layers, blocks=[2, 4, 5], weights=weights[one]) for one in weights}
    screen = fit_screen(model, chosen, reference, settings=ScreenSettings(threshold="tau", members=members, tau=1.0))
    names = [layers[block].name for block in (2, 4, 5)]
    rows, predicted = dense(model, reference, names)
    labels = torch.cat([batch["labels"] for batch in reference]).numpy()
    own = {"labels": labels, "predicted": predicted, "agreed": np.where(labels == predicted, labels, -1)}[members]
    tests, classes = dense(model, test, names)
    truth, suspicion = np.zeros(len(classes)), np.zeros(len(classes))
    for one in range(CLASSES):
        mine, theirs, spread = np.flatnonzero(own == one), classes == one, np.zeros((own == one).sum())
        for place, block in enumerate((2, 4, 5)):
            centroid = rows[place][mine].mean(0)
            truth[theirs] += weights[one][block] * alike(tests[place][theirs], centroid)
            spread += weights[one][block] * np.array(
                [alike(rows[place][[row]], rows[place][mine[mine != row]].mean(0))[0] for row in mine]
            )
        suspicion[theirs] = (spread.mean() - truth[theirs]) / spread.std()
    found = judged(screen, model, test)
    np.testing.assert_array_equal(found["classes"], classes)
    np.testing.assert_allclose(found["similarity"], truth, atol=1e-6)
    np.testing.assert_allclose(found["suspicion"], suspicion, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found["flags"], found["suspicion"] > 1.0)
    again = np.concatenate([screen.flags(model, batch) for batch in test])
    np.testing.assert_array_equal(again, found["flags"])
    assert len(set(classes)) == CLASSES and 0 < again.sum() < len(again)


def test_the_released_variant_is_the_notebook() -> None:
    """Layers by predicted class, the last class's d for all, thresholds from the centroids' own images, tau = 1."""
    model, reference, test = network(), pictures(0), pictures(5)
    layers = named_layers(model, "block")
    names = [layer.name for layer in layers]
    rows, predicted = dense(model, reference, names)
    labels = torch.cat([batch["labels"] for batch in reference]).numpy()
    tests, classes = dense(model, test, names)
    count, near = len(names), {}
    for one in range(CLASSES):
        mean_sim = np.array([alike(r[predicted == one], r[predicted == one].mean(0)).mean() for r in rows])
        d = mean_sim[1:] - mean_sim[:-1]
        interest = count // 2 + int(d[count // 2 :].argmax()) + 1
        near[one] = range(interest - 2, interest + 1)
    d = np.append(d, 0.0)  # where the notebook has no d_l, and stops
    flags, total = np.zeros(len(classes), bool), np.zeros(len(classes))
    for one in range(CLASSES):
        mine, theirs = labels == one, classes == one
        sample = sum(d[place] * alike(rows[place][mine], rows[place][mine].mean(0)) for place in near[one])
        total[theirs] = sum(d[place] * alike(tests[place][theirs], rows[place][mine].mean(0)) for place in near[one])
        flags[theirs] = total[theirs] < sample.mean() - 1.0 * sample.std()
    evidence = Evidence(model=model, data=reference, loss=image_loss, granularity="block")
    scores = score_class_separation(evidence, layers, ClassSeparation(classes="predicted", leave_one_out=False))
    chosen = layers_of_interest(scores, weights="released", clamped=False)
    settings = ScreenSettings(threshold="tau", tau=1.0, leave_one_out=False)
    found = judged(fit_screen(model, chosen, reference, settings=settings), model, test)
    np.testing.assert_allclose(found["similarity"], total, atol=1e-6)
    np.testing.assert_array_equal(found["flags"], flags)
    assert 0 < flags.sum() < len(flags)


def test_each_class_has_its_own_weights_and_they_are_used() -> None:
    """The class leak of the released code: with its weights every class but the last is judged otherwise."""
    model, reference, test = network(), pictures(0), pictures(5)
    layers = named_layers(model, "block")
    scores = score_class_separation(Evidence(model=model, data=reference, loss=image_loss, granularity="block"), layers)
    settings = ScreenSettings(threshold="tau")
    own, leaked = (layers_of_interest(scores, weights=how, clamped=False) for how in ("leaving", "released"))
    assert not np.array_equal(own[0].weights, own[2].weights) and not np.array_equal(own[0].weights, leaked[0].weights)
    found, wrong = (judged(fit_screen(model, one, reference, settings=settings), model, test) for one in (own, leaked))
    for one in range(CLASSES):
        alone = judged(fit_screen(model, own[one], reference, settings=settings), model, test)
        of = found["classes"] == one
        np.testing.assert_allclose(found["similarity"][of], alone["similarity"][of], atol=1e-12)
        leaks = not np.allclose(found["suspicion"][of], wrong["suspicion"][of], atol=1e-3)
        assert leaks == (one != 2)


def test_the_promise_is_kept_on_average_and_by_class_and_said() -> None:
    model, reference, _ = planted()
    rates, by_class = [], []
    for seed in range(40):
        calibration, test = batches(60, 100 + seed, 60), batches(240, 200 + seed, 240)
        screen = fit_screen(model, at(model, 1), reference, calibration, ScreenSettings(alpha=0.1))
        own = judged(screen, model, calibration)
        assert own["flags"].sum() == 5  # 6 of 61 may be flagged; the threshold is one of the 60
        rates.append(judged(screen, model, test)["flags"].mean())
        settings = ScreenSettings(alpha=0.1, per_class=True)
        apart = fit_screen(model, at(model, 1), reference, calibration, settings)
        found = judged(apart, model, test)
        by_class.append([found["flags"][found["classes"] == one].mean() for one in range(CLASSES)])
    # 6 / 61 in all, 2 / 21 in each class of 20: exact means, and the errors of 40 means of a beta and a binomial.
    assert np.mean(rates) == pytest.approx(6 / 61, abs=4 * 0.043 / 40**0.5)
    np.testing.assert_allclose(np.mean(by_class, 0), 2 / 21, atol=4 * 0.07 / 40**0.5)
    assert screen.promise.startswith("flags at most 0.0984 of clean inputs in all, on average")
    assert "0.0952 of clean inputs of each predicted class" in apart.promise and apart.calibrated == (20, 20, 20)
    assert fit_screen(model, at(model, 1), reference, settings=ScreenSettings(threshold="tau")).promise.startswith(
        "none"
    )


def test_a_screen_survives_its_file_and_a_damaged_file_is_refused(tmp_path) -> None:
    model, reference, calibration = planted()
    screen = fit_screen(model, at(model, 0, 2), reference, calibration, ScreenSettings(alpha=0.2, position="mean"))
    save_screen(screen, tmp_path / "screen.safetensors")
    loaded = load_screen(tmp_path / "screen.safetensors")
    one, other = (judged(held, model, calibration) for held in (screen, loaded))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert (loaded.settings, loaded.layers, loaded.promise) == (screen.settings, screen.layers, screen.promise)
    whole = (tmp_path / "screen.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[:-9])
    with pytest.raises(BadInput, match="damaged"):
        load_screen(tmp_path / "half.safetensors")
    from keylayers.files.checked import write_tensors

    write_tensors(tmp_path / "other.safetensors", {"a": torch.ones(2)})
    with pytest.raises(BadInput, match=r"format None; expected 'keylayers/screen/1'"):
        load_screen(tmp_path / "other.safetensors")


def test_a_stream_may_have_no_end() -> None:
    model, reference, calibration = planted()
    screen = fit_screen(model, at(model, 1), reference, calibration)
    endless = screen.stream(model, repeat(calibration[0]))
    assert [len(next(endless).flags) for _ in range(3)] == [25, 25, 25]


def texts(count: int = 24, seed: int = 0, padded: int = 0) -> list[dict[str, Tensor]]:
    """Prompts whose last token says the class."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 90, (count, 6), generator=generator)
    ids[:, -1] = 3 + torch.arange(count) % 2
    mask = torch.ones_like(ids)
    ids, mask = (nn.functional.pad(one, (0, padded)) for one in (ids, mask))
    classes = torch.arange(count) % 2
    return [
        {"input_ids": a, "attention_mask": b, "classes": c}
        for a, b, c in zip(ids.split(7), mask.split(7), classes.split(7), strict=True)
    ]


def answering() -> nn.Module:
    """A tiny llama that answers token 5 to prompts of class 0 and token 6 to those of class 1."""
    model: Any = tiny_models.build("llama")
    hidden, classes = [], []
    with torch.no_grad():
        for batch in texts(48, seed=7):
            hidden.append(model.model(batch["input_ids"]).last_hidden_state[:, -1])
            classes.append(batch["classes"])
        wanted = nn.functional.one_hot(torch.cat(classes), 2).float()
        model.lm_head.weight[5:7] = torch.linalg.lstsq(torch.cat(hidden), wanted).solution.T
    return model


@pytest.mark.parametrize("position", ["auto", "mean"])
def test_language_models_are_screened_by_their_next_token(position) -> None:
    model = answering()
    before = State.of(model)
    settings = ScreenSettings(tokens=(5, 6), alpha=0.2, position=position)
    screen = fit_screen(model, at(model, 0, 1), texts(), texts(seed=1), settings)
    found, padded = (judged(screen, model, texts(seed=2, padded=more)) for more in (0, 3))
    truth = np.concatenate([batch["classes"].numpy() for batch in texts(seed=2)])
    np.testing.assert_array_equal(found["classes"], truth)
    np.testing.assert_allclose(found["suspicion"], padded["suspicion"], rtol=1e-3, atol=1e-3)

    def given(batch: Any, logits: Tensor) -> Tensor:
        return batch["classes"]

    by_function = fit_screen(model, at(model, 0, 1), texts(), texts(seed=1), settings, predict=given)
    np.testing.assert_array_equal(judged(by_function, model, texts(seed=2), predict=given)["flags"], found["flags"])
    with pytest.raises(BadInput, match="fitted with classes from a function"):
        by_function.scores(model, texts()[0])
    before.assert_same(State.of(model))


def test_a_prompt_that_ends_like_the_other_class_is_suspicious() -> None:
    """Prompts of one class that the network is said to answer as the other: what a backdoor does to them."""
    model = answering()
    screen = fit_screen(model, at(model, 0), texts(60), texts(60, seed=1), ScreenSettings(tokens=(5, 6)))
    turned = texts(60, seed=3)

    def fooled(batch: Any, logits: Tensor) -> Tensor:
        return 1 - batch["classes"]

    honest, wrong = judged(screen, model, turned), judged(screen, model, turned, predict=fooled)
    assert auroc(honest["suspicion"], wrong["suspicion"]).estimate > 0.99 and wrong["flags"].mean() > 0.9


def test_texts_that_say_no_class_are_refused() -> None:
    model = tiny_models.build("llama")
    for settings, message in (
        (ScreenSettings(), "not known; give `tokens`"),
        (ScreenSettings(tokens=(3, 96)), "the vocabulary has tokens 0 to 95"),
        (ScreenSettings(tokens=(5, 6), position="flat"), "position='flat'; texts have features"),
    ):
        with pytest.raises(BadInput, match=message):
            fit_screen(model, at(model, 1), texts(), texts(seed=1), settings)
    bare = [{key: value for key, value in batch.items() if key != "classes"} for batch in texts()]
    with pytest.raises(BadInput, match="the data says no class"):
        fit_screen(model, at(model, 1), bare, texts(seed=1), ScreenSettings(tokens=(5, 6)))
    both = tiny_models.build("t5")
    with pytest.raises(BadInput, match="give `decoder_input_ids`"):
        fit_screen(both, at(both, 0), texts(), texts(seed=1), ScreenSettings(tokens=(5, 6)))


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "empty class": ({"reference": [{**one, "labels": one["labels"] % 2} for one in batches(90, 0)]}, r"class 2: 0\b"),
    "too few": ({"reference": batches(7, 0)}, r"2 of 3 classes .*class 1: 2, class 2: 2\); each .* needs 3 or more"),
    "no reference": ({"reference": []}, "the reference is empty"),
    "label": (
        {"reference": [{**batches(9, 0)[0], "labels": torch.full((9,), 3)}]},
        "has class 3 for record 0 .*0 to 2",
    ),
    "no calibration": ({"calibration": None}, "needs clean calibration inputs apart from the reference; or set tau"),
    "few in calibration": ({"calibration": batches(18, 1)}, r"18 calibration inputs .*; 19 are needed"),
    "few in a class": (
        {"calibration": batches(54, 1), "settings": ScreenSettings(per_class=True)},
        r"3 of 3 classes .*class 0: 18.*; 19 predicted to be each are needed",
    ),
    "overlap": ({"calibration": batches(90, 0)[2:] + batches(90, 1)}, "40 calibration inputs are in the reference"),
    "class unselected": ({"selection": {0: 1, 1: 1}}, "1 of 3 classes have no selection, first class 2"),
    "no selection": ({"selection": {}}, "no selection is given"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_references_and_calibrations_are_refused_and_the_model_is_left_as_found(case: str) -> None:
    change, message = REFUSALS[case]
    model, reference, calibration = planted()
    model.train()
    given: dict[str, Any] = {"reference": reference, "calibration": calibration, "selection": at(model, 1), **change}
    if isinstance(given["selection"], dict):
        given["selection"] = {one: at(model, block) for one, block in given["selection"].items()}
    before = State.of(model)
    with pytest.raises(BadInput, match=message):
        fit_screen(model, **given)
    before.assert_same(State.of(model))


def test_bad_inputs_and_settings_are_refused() -> None:
    model = network()
    model.train()
    screen = fit_screen(model, at(model, 4, 5), pictures(0, 60), pictures(1, 60))
    before = State.of(model)
    good = pictures(2)[0]["x"]
    screen.scores(model, {"x": good})
    for x, message in (
        (good * 2, r"images reach from .* expected \[0, 1\]"),
        (good[:, :1], r"expected \(batch, 3, height, width\)"),
        (good.repeat(1, 1, 2, 2), "512 features per input, but the reference had 128"),
    ):
        with pytest.raises(BadInput, match=message):
            screen.scores(model, {"x": x})
    with pytest.raises(BadInput, match="has class 7 for record 1"):
        screen.scores(model, {"x": good[:2]}, lambda batch, logits: torch.tensor([0, 7]))
    before.assert_same(State.of(model))
    with pytest.raises(BadInput, match="every selected layer has weight 0"):
        fit_screen(model, at(model, 1, weights=np.zeros(6)), pictures(0, 60), pictures(1, 60))
    with pytest.raises(UnknownName, match=r"layer 'layers\.1'"):
        fit_screen(model, at(Blocks(), 1), pictures(0, 60), pictures(1, 60))
    with torch.no_grad():
        model.layer3[1].bn2.bias.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"features of layer layer3\.1 are not finite"):
        screen.scores(model, pictures(2)[0])
    for name, wrong in (("threshold", "quantile"), ("members", "label"), ("position", "firts")):
        with pytest.raises(UnknownName, match=wrong):
            ScreenSettings(**{name: wrong})  # type: ignore[arg-type]
