"""What `keylayers harden`, `cleanse`, `screen` say to images that cannot be used and to words that make no sense."""

import numpy as np
import pytest
import torch

from keylayers.cli.options import DIGITS
from keylayers.cli.vision import fraction
from keylayers.errors import BadInput

NETWORK = ("--model", DIGITS)
NO_SKIP = "tests.cli.test_vision_refusals:plain_network"


def plain_network() -> torch.nn.Module:
    """A network without a skip."""
    return torch.nn.Sequential(torch.nn.Conv2d(1, 10, 8), torch.nn.Flatten())


def _damaged(place, tmp_path, **changes):
    held = dict(np.load(place / "clean.npz"))
    np.savez(tmp_path / "given.npz", **{**held, **{key: change(held) for key, change in changes.items()}})
    return tmp_path / "given.npz"


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        ("cleanse", {"y": lambda held: np.where(held["y"] == 3, 4, held["y"])}, "class 3 has no image"),
        ("cleanse", {"y": lambda held: held["y"] + 5}, "is out of range"),
        ("cleanse", {"x": lambda held: np.repeat(held["x"][..., None], 3, 3)}, r"expected (batch, 1, height, width)"),
        ("cleanse", {"x": lambda held: held["x"] / 255}, "expected uint8"),
        ("cleanse", {"x": lambda held: held["x"][:-1]}, "expected one label per image"),
        ("screen", {"y": lambda held: np.where(held["y"] == 3, 4, held["y"])}, "too few records in the reference"),
        ("screen", {"x": lambda held: np.repeat(held["x"][..., None], 3, 3)}, "of (3, 8, 8) (channels, height, width)"),
        ("harden", {"y": lambda held: held["y"] + 5}, "is out of range"),
        ("harden", {"y": lambda held: np.where(held["y"] == 3, 4, held["y"])}, "class 3 has no image"),
        ("screen", {"x": lambda held: np.pad(held["x"], ((0, 0), (2, 2), (2, 2)))}, "expected the same"),
        ("harden", {"x": lambda held: np.repeat(held["x"][..., None], 3, 3)}, r"expected (batch, 1, height, width)"),
    ],
)
def test_bad_images_are_told(cli, place, tmp_path, command, changes, said):
    given = _damaged(place, tmp_path, **changes)
    words = [*NETWORK, "--weights", place / "w.safetensors", "--data" if command == "harden" else "--clean", given]
    words += ["--data", place / "stream.npz"] if command == "screen" else []
    done = cli(command, *words, "--out", tmp_path / "run")
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cleanse", "--model", NO_SKIP, "--clean", "bundled:digits"), "no skip"),
        (("cleanse", "--skip", "layer9"), "unknown layer 'layer9'|layer9"),
        (("cleanse", "--calibration", "oracle"), "unknown value of --calibration 'oracle'"),
        (("cleanse", "--attack-target", "1"), "--attacked and --attack-target go together"),
        (("cleanse", "--factor", "2"), "--factor 2.0: expected a number of at least 0 and at most 1"),
        (("harden", "--eps", "eight"), "--eps eight: expected a radius such as 8/255"),
        (("harden", "--steps", "0"), "attacks of 0 steps (--steps) move no image"),
        (("harden", "--reselect", "-1"), "--reselect -1: expected epochs, or 0 for never"),
        (("harden", "--model", NO_SKIP, "--data", "bundled:digits"), "there is nothing to choose among"),
        (
            ("screen", "--model", "bundled:llama", "--clean", "bundled:digits", "--data", "bundled:digits"),
            "is a model of texts",
        ),
        (("harden", "--epochs", "0"), "hardening for 0 epochs changes nothing"),
        (("harden", "--batch-size", "0"), "--batch-size 0: expected a whole number of at least 1"),
        (("cleanse", "--lr", "-1"), "--lr -1.0: expected a number above 0"),
        (("cleanse", "--epochs", "-3"), "--epochs -3: expected a whole number of at least 0"),
        (("harden", "--eps", "8"), "expected a radius above 0 and at most 1"),
        (("harden", "--loss", "pgd"), "unknown value of --loss 'pgd'; did you mean 'pgd-at'"),
        (("harden", "--select", "tob:5%"), "did you mean 'top'"),
        (("screen", "--data", "absent.npz"), "absent.npz cannot be read (No such file"),
        (("screen", "--data", "bundled:digits", "--alpha", "5"), "--alpha 5: expected the share of clean images"),
    ],
)
def test_wrong_words_are_told(cli, tmp_path, words, said):
    done = cli(*words, "--out", tmp_path / "run")
    assert done.code == 2 and any(part in done.err for part in said.split("|")), done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("target", "labels", "said"),
    [(1, 1, "all 20 labels are 1, the class that the trigger brings"), (99, 2, "the target class is 99; expected 0")],
)
def test_attacked_images_are_looked_at_before_the_work(cli, place, tmp_path, target, labels, said):
    """With the labels that the attacker put there, success would be the mean of nothing; of a class that there is not,
    0."""
    np.savez(tmp_path / "bad.npz", x=np.load(place / "bad.npz")["x"][:20], y=np.full(20, labels))
    done = cli(
        "cleanse", *NETWORK, "--weights", place / "w.safetensors", "--clean", place / "clean.npz",
        "--out", tmp_path / "run", "--attacked", tmp_path / "bad.npz", "--attack-target", target,
    )  # fmt: skip
    assert done.code == 2 and said in done.err and not (tmp_path / "run" / "cleansed.safetensors").exists(), done.err


def test_images_are_not_scored_by_what_is_learnt_from_texts_nor_texts_by_images(cli, place, tmp_path):
    words = (*NETWORK, "--data", place / "clean.npz")
    done = cli("score", "learned_mask", *words, "--out", tmp_path / "run")
    assert done.code == 2 and "holds images, and learned_mask needs what tuning changed" in done.err
    done = cli("score", "feature_fragility", *NETWORK, "--data", "bundled:pirate", "--out", tmp_path / "other")
    assert done.code == 2 and "feature_fragility takes images, and --data bundled:pirate holds none" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("harden", "--data", "mine.npz"), "'--model'"),
        (("harden", "--model", "mine:net"), "'--data'"),
        (("cleanse", "--weights", "w.safetensors"), "'--model'"),
        (("cleanse", "--model", "mine:net"), "'--clean'"),
        (("screen", "--data", "s.npz", "--clean", "mine.npz"), "'--model'"),
        (("screen", "--clean", "mine.npz"), "'--data'"),
    ],
)
def test_the_bundled_digits_stand_for_nothing_of_the_users_own(cli, words, said):
    done = cli(*words)
    assert done.code == 2 and f"Missing option {said}" in done.err


def test_the_bundled_digits_are_named_where_they_serve(cli):
    done = cli("harden", "--epochs", "0")
    assert done.code == 2 and "no --model and no --data: taking the bundled digits and an untrained network" in done.err


def test_a_radius_is_a_fraction_or_a_number():
    assert fraction("8/255", "--eps") == pytest.approx(8 / 255) and fraction("0.03", "--eps") == 0.03
    with pytest.raises(BadInput, match="--eps 8/0"):
        fraction("8/0", "--eps")
