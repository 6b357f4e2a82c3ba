"""`keylayers harden`, `cleanse`, `screen` and `score` as typed, on a backdoored network of digits."""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from keylayers.actions.screen_fitting import fit_screen
from keylayers.actions.screening import load_screen
from keylayers.cli.options import DIGITS
from keylayers.criteria.feature_fragility import score_feature_fragility
from keylayers.data.images import load_images
from keylayers.inputs.images import ImageInputs
from keylayers.inputs.networks import load_network
from keylayers.layers.suppressed import Suppressed
from keylayers.measures.backdoor import predicted_classes
from keylayers.measures.masking import sanity
from keylayers.models.digits import digits_resnet
from keylayers.models.normalised import normalise_inside
from keylayers.recipes import harden, screen
from keylayers.recipes.cleanse import TUNED
from keylayers.runs import Progress, file_sha256
from keylayers.scores import load_scores
from keylayers.training.images import ImageTraining, train_images

NETWORK = ("--model", DIGITS)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Of the attacks that measure."""
    monkeypatch.setattr(harden, "TEST_STEPS", 2)


def test_a_stream_is_screened_and_the_screen_can_be_used_again(cli, place, tmp_path):
    words = (*NETWORK, "--weights", place / "w.safetensors", "--clean", place / "clean.npz", "--out", tmp_path / "run")
    done = cli("screen", "--data", place / "stream.npz", "--alpha", "10%", "--layers", "blocks:2", *words)
    assert done.code == 0, done.err
    flags = json.loads((tmp_path / "run" / "flags.json").read_text())
    raised = np.array(flags["flagged"])
    assert f"{raised.sum()} of 100 images are flagged" in done.out
    assert "flags at most 0.0959 of clean inputs" in done.out
    assert raised[60:].mean() > raised[:60].mean() + 0.3
    network = digits_resnet()
    network.load_state_dict(load_file(place / "w.safetensors"))
    pixels = torch.from_numpy(np.load(place / "stream.npz")["x"]).float()[:, None] / 255
    again = load_screen(tmp_path / "run" / "screen.safetensors").flags(network.eval(), {"x": pixels})
    assert (again == raised).all()


@pytest.mark.parametrize("calibration", ["clean-only", "own-trigger"])
def test_a_network_is_cleansed_and_what_was_stored_does_what_was_said(cli, place, tmp_path, calibration):
    done = cli(
        "cleanse", *NETWORK, "--weights", place / "w.safetensors", "--clean", place / "clean.npz",
        "--calibration", calibration,
        "--epochs", "2", "--attacked", place / "bad.npz", "--attack-target", "1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    stated = json.loads((tmp_path / "run" / "cleansed.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (skip,) = results["skips"]
    assert stated["skips"] == {skip: 0.0} and f"turned down to 0: {skip}" in done.out
    assert skip == max(results["scores"], key=results["scores"].get)
    network = digits_resnet()
    network.load_state_dict(load_file(tmp_path / "run" / "cleansed.safetensors"))
    whole = Suppressed(network, [skip], 0.0).eval()
    bad = np.load(place / "bad.npz")
    found = predicted_classes(whole, torch.from_numpy(bad["x"]).float()[:, None] / 255)
    success = float((found[torch.from_numpy(bad["y"]) != 1] == 1).float().mean())
    assert success == pytest.approx(results["figures"]["attack success"][1])
    again = cli(
        "cleanse", *NETWORK, "--weights", tmp_path / "run" / "cleansed.safetensors", "--clean", place / "clean.npz",
        "--skip", "layer2.1.skip", "--epochs", "1", "--attacked", place / "bad.npz", "--attack-target", "1",
        "--out", tmp_path / "2",
    )  # fmt: skip
    assert again.code == 0 and f"{skip} stay turned down" in again.err, again.err
    second = json.loads((tmp_path / "2" / "results.json").read_text())
    assert second["figures"]["attack success"][0] == results["figures"]["attack success"][1]
    assert json.loads((tmp_path / "2" / "cleansed.json").read_text())["skips"] == {skip: 0.0, "layer2.1.skip": 0.0}
    words = (*NETWORK, "--weights", tmp_path / "run" / "cleansed.safetensors", "--clean", "bundled:digits")
    refused = cli("cleanse", *words, "--out", tmp_path / "3")
    assert refused.code == 2 and f"{skip} of this network are turned down already" in refused.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"With {skip} turned down" in page and "Nothing is finished" not in page


def test_few_layers_are_hardened_and_both_states_are_stored(cli, place, tmp_path):
    done = cli(
        "harden", *NETWORK, "--weights", place / "w.safetensors", "--data", place / "clean.npz", "--eps", "0.1",
        "--steps", "1",
        "--epochs", "2", "--reselect", "1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [epoch for epoch, _ in results["selections"]] == [0, 1] and "worst case" in done.out
    before, after = load_file(place / "w.safetensors"), load_file(tmp_path / "run" / "last.safetensors")
    chosen = {f"{name}.weight" for _, names in results["selections"] for name in names}
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and changed <= chosen
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        f"Adversarial training of 1 layer brings accuracy under attack from {results['before']['worst case']:.1%}"
        in (page.replace("\u00a0", ""))
    )
    assert f"on {results['images']} held-out images" in done.out


@pytest.mark.parametrize("command", ["harden", "cleanse"])
def test_what_was_stopped_goes_on_after_its_last_epoch(cli, place, tmp_path, monkeypatch, command):
    words = (
        command,
        *NETWORK,
        "--weights",
        place / "w.safetensors",
        "--data" if command == "harden" else "--clean",
        place / "clean.npz",
    )
    words += ("--epochs", "3", *(("--eps", "0.1", "--steps", "1") if command == "harden" else ()))
    assert cli(*words, "--out", tmp_path / "whole").code == 0
    advance = Progress.advance

    def stopping(bar, count=1, text=""):
        advance(bar, count, text)
        if bar.label == "epochs" and bar.done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "advance", stopping)
        stopped = cli(*words, "--out", tmp_path / "run")
    assert stopped.code != 0 and f"what is finished is kept in {tmp_path / 'run'}. To resume: keylayers" in stopped.err
    again = cli(*words, "--out", tmp_path / "run")
    assert again.code == 0 and "going on after epoch 2" in again.err, again.err
    name = "last.safetensors" if command == "harden" else "cleansed.safetensors"
    first, second = (load_file(tmp_path / folder / name) for folder in ("whole", "run"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    results = [json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("whole", "run")]
    assert results[0] == results[1] and not list((tmp_path / "run" / "checkpoints" / "training").iterdir())
    once_more = cli(*words, "--out", tmp_path / "run")
    assert once_more.code == 0 and once_more.out == again.out and "epochs:" not in once_more.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("harden", ("--data", "{x}", "--eps", "0.1", "--steps", "1", "--epochs", "1", "--select", "top:2")),
        ("cleanse", ("--clean", "{x}", "--epochs", "0", "--skip", "layer1.0.skip")),
        ("screen", ("--clean", "{x}", "--data", "{x}", "--alpha", "10%", "--layers", "blocks:2")),
    ],
)
def test_other_images_under_the_same_name_are_not_taken_for_those_of_the_run(cli, place, tmp_path, command, words):
    images, weights = tmp_path / "x.npz", tmp_path / "w.safetensors"
    images.write_bytes((place / "clean.npz").read_bytes())
    weights.write_bytes((place / "w.safetensors").read_bytes())
    words = (command, *NETWORK, "--weights", weights, *(word.format(x=images) for word in words))
    words += ("--out", tmp_path / "run")
    done = cli(*words)
    assert done.code == 0, done.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert file_sha256(images) in page and file_sha256(weights) in page
    held = dict(np.load(images))
    np.savez(images, x=held["x"][::-1], y=held["y"][::-1])
    again = cli(*words)
    assert again.code == 2 and f"{images}: its content is not what it was" in again.err and "--fresh" in again.err
    assert str(weights) not in again.err


@pytest.mark.parametrize(
    "criterion",
    [
        "skip_suppression",
        "class_separation",
        pytest.param("feature_fragility", marks=pytest.mark.long),
        pytest.param("robust_capacity", marks=pytest.mark.long),
    ],
)
def test_criteria_of_images_are_scored_and_their_scores_choose_what_is_hardened(cli, place, tmp_path, criterion):
    words = (*NETWORK, "--weights", place / "w.safetensors")
    done = cli("score", criterion, *words, "--data", place / "clean.npz", "--out", tmp_path / "run", "--records", "60")
    assert done.code == 0, done.err
    scores = load_scores(tmp_path / "run" / f"{criterion}.json")
    assert scores.granularity == ("skip" if criterion == "skip_suppression" else "conv")
    assert scores.provenance.data[0]["records"] == 60 and len(scores.values) == len(scores.layers)
    if criterion != "feature_fragility":
        return
    words = (*NETWORK, "--weights", place / "w.safetensors", "--data", place / "clean.npz", "--eps", "0.1")
    words += ("--steps", "1")
    words += ("--epochs", "1", "--select", "top:2", "--scores", tmp_path / "run" / f"{criterion}.json")
    assert cli("harden", *words, "--out", tmp_path / "hard").code == 0
    ((_, names),) = json.loads((tmp_path / "hard" / "results.json").read_text())["selections"]
    assert set(names) == {layer.name for layer in scores.ranking()[:2]}


@pytest.fixture(scope="module")
def checkpoint(place):
    """A Hugging Face classifier of the same images, normalised by its preprocessor, in a folder as it is saved."""
    config = hf.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=10
    )
    torch.manual_seed(0)
    network, stated = hf.ResNetForImageClassification(config), {"image_mean": [0.3], "image_std": [0.4]}
    normalise_inside(network, *stated.values())
    x, y = load_images(place / "clean.npz").tensors()
    train_images(network, x, y, ImageTraining(epochs=8, batch_size=30, learning_rate=0.05))
    network.save_pretrained(place / "hf")
    (place / "hf" / "preprocessor_config.json").write_text(json.dumps(stated))
    return place / "hf"


@pytest.mark.parametrize(
    "words",
    [
        ("harden", "--eps", "0.1", "--steps", "1", "--epochs", "2", "--reselect", "1"),
        ("cleanse", "--calibration", "clean-only", "--epochs", "1"),
        ("cleanse", "--calibration", "own-trigger", "--epochs", "1"),
        ("screen", "--alpha", "10%"),
    ],
    ids=lambda words: f"{words[0]} {words[2]}",
)
def test_a_hugging_face_checkpoint_goes_through_every_command(cli, place, checkpoint, tmp_path, words):
    given = ["--data" if words[0] == "harden" else "--clean", place / "clean.npz"]
    given += ["--data", place / "stream.npz"] if words[0] == "screen" else []
    done = cli(*words, "--model", checkpoint, *given, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    if words[0] == "screen":
        assert len(json.loads((tmp_path / "run" / "flags.json").read_text())["flagged"]) == 100
        return
    before = load_file(checkpoint / "model.safetensors")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    accuracy = results["before"]["clean"] if words[0] == "harden" else results["figures"]["clean accuracy"][0]
    assert accuracy > 0.6  # not normalised, or wrongly loaded, it would guess
    after = load_file(tmp_path / "run" / ("last.safetensors" if words[0] == "harden" else "cleansed.safetensors"))
    assert after.keys() == before.keys() and any(not torch.equal(after[name], before[name]) for name in before)
    if words[0] == "harden":
        return
    words = ("--model", checkpoint, "--weights", tmp_path / "run" / "cleansed.safetensors", "--skip", "stages.0")
    again = cli("cleanse", *words, "--clean", place / "clean.npz", "--epochs", "0", "--out", tmp_path / "again")
    name = results["skips"][0]
    assert again.code == 2 and f"{name} stay turned down" in again.err, again.err
    words = (*words[:4], "--clean", place / "clean.npz", "--epochs", "0", "--skip")
    other = next(one for one in results["scores"] if one != name)
    again = cli("cleanse", *words, other, "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "again" / "cleansed.json").read_text())["skips"] == {name: 0.0, other: 0.0}
    words = ("--model", checkpoint, "--weights", tmp_path / "run" / "cleansed.safetensors", "--alpha", "10%")
    words += ("--clean", place / "clean.npz", "--data", place / "stream.npz", "--out", tmp_path / "screened")
    assert cli("screen", *words).code == 0
    model = load_network(str(checkpoint), str(tmp_path / "run" / "cleansed.safetensors")).model
    _, held = ImageInputs(str(checkpoint), str(place / "clean.npz")).parts(TUNED)
    x, y = held.tensors()
    right = float((predicted_classes(model, x) == y).float().mean())
    assert right == pytest.approx(results["figures"]["clean accuracy"][1], abs=1e-6)


@pytest.mark.long
def test_layers_are_chosen_and_checked_on_images_of_all_classes_of_a_sorted_file(cli, place, tmp_path, monkeypatch):
    held = load_images("bundled:digits")
    order = np.argsort(held.labels, kind="stable")
    np.savez(tmp_path / "sorted.npz", x=held.pixels[order, 0], y=held.labels[order])
    seen = {"chosen": [], "checked": []}

    def choosing(evidence, *rest):
        seen["chosen"].append(evidence.data[0]["labels"])
        return score_feature_fragility(evidence, *rest)

    def checking(model, x, y, *rest):
        seen["checked"].append(y)
        return sanity(model, x, y, *rest)

    monkeypatch.setattr(harden, "score_feature_fragility", choosing)
    monkeypatch.setattr(harden, "sanity", checking)
    done = cli(
        "harden", *NETWORK, "--weights", place / "w.safetensors", "--data", tmp_path / "sorted.npz", "--eps", "0.1",
        "--steps",
        "1", "--epochs", "1", "--loss", "pgd-at", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {len(labels) for labels in seen["chosen"]} == {128} and {len(labels) for labels in seen["checked"]} == {100}
    for labels in (*seen["chosen"], *seen["checked"]):
        assert set(labels.tolist()) == set(range(10))


def backwards() -> torch.nn.Module:
    """A network that declares its layers in another order than it runs them."""

    class Backwards(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(36, 10)
            self.late = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.early = torch.nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.late(torch.relu(self.early(x))))
            return self.head(torch.nn.functional.adaptive_avg_pool2d(hidden, 3).flatten(1))

    return Backwards()


def test_layers_are_hardened_in_the_order_they_run(cli, tmp_path, monkeypatch):
    """Fragility compares a layer with the one before it."""
    seen = []

    def scoring(evidence, layers, settings):
        seen.append([layer.name for layer in layers])
        return score_feature_fragility(evidence, layers, settings)

    monkeypatch.setattr(harden, "score_feature_fragility", scoring)
    monkeypatch.setattr(harden, "_measured", lambda *_: ({"clean": 0.0}, ()))
    words = ("--model", "tests.cli.test_vision:backwards", "--steps", "1", "--epochs", "1", "--select", "top:1")
    done = cli("harden", *words, "--data", "bundled:digits", "--out", tmp_path / "run")
    assert done.code == 0 and seen == [["early", "late"]], done.err


def test_by_tau_all_clean_images_are_the_reference(cli, place, tmp_path, monkeypatch):
    """A recommended constant is calibrated on nothing."""
    seen = []

    def fitting(model, chosen, reference, calibration=None, settings=None):
        seen.append((sum(len(batch["labels"]) for batch in reference), calibration))
        return fit_screen(model, chosen, reference, calibration, settings)

    monkeypatch.setattr(screen, "fit_screen", fitting)
    words = (*NETWORK, "--weights", place / "w.safetensors", "--clean", place / "clean.npz")
    words += ("--data", place / "stream.npz")
    done = cli("screen", *words, "--tau", "2.5", "--layers", "blocks:2", "--out", tmp_path / "run")
    assert done.code == 0 and seen == [(len(np.load(place / "clean.npz")["y"]), None)], done.err
