"""The screening study in miniature, and its tables on planted figures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from keylayers.errors import UnknownName
from keylayers.papers.lfa.cells import ALONE, LAST, LEAST, OURS
from keylayers.papers.lfa.study import ANY, Results, Scale, reproduce, scale_of
from keylayers.papers.lfa.tables import ARMS, introduction, list_claims, make_tables, to_json
from keylayers.runs import open_run
from keylayers.studies.backdoor_tasks import needs, real
from keylayers.studies.image_task import ImageTask
from keylayers.studies.image_victims import Backdoor
from keylayers.studies.pages import page
from tests.papers.little_images import LITTLE, cifar_like, watched
from tests.papers.test_lfa_tables import study


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A study of one attack that works and one that does not."""
    folder = tmp_path_factory.mktemp("lfa")
    asked = watched(network=LITTLE, patch=Backdoor("patch", share=0.3), faint=Backdoor("blend", 0.0))
    with open_run(folder, "study", {}) as run:
        (results,) = list(reproduce(Scale((asked,)), run, processes=1))
    return results, folder


def test_all_choices_are_judged_and_an_attack_that_fails_is_not(found):
    (one,), _ = found
    assert one.attacks == ["patch"] and one.judged("faint") == []
    arms = one.screened["patch"][0]["arms"]
    assert set(ARMS) - {ANY} <= set(arms) and sum(name.endswith("alone") for name in arms) == 3
    for arm in arms.values():
        assert 0.5 < arm["auroc"] <= 1 and all(0 <= value <= 1 for value in arm.values())
    blocks = [arms[ALONE.format(index)]["auroc"] for index in range(3)]
    assert one.values(ANY, "auroc", "patch")[0] == pytest.approx(np.mean(blocks))
    assert arms[LAST]["auroc"] == blocks[2] and arms[LEAST]["auroc"] in blocks
    assert set(one.screened["patch"][0]["interest"]) == set(map(str, range(10)))
    assert {name: sorted(seeds) for name, seeds in one.screened.items()} == {None: [0, 1], "patch": [0, 1]}


def test_a_finished_study_is_read_back_and_its_page_says_its_figures(found, monkeypatch):
    results, folder = found
    monkeypatch.setattr("keylayers.papers.lfa.cells.DO", {})
    faint = replace(results[0].watched, attacks={"faint": results[0].watched.attacks["faint"]})
    with open_run(folder, "study", {}) as run:
        (again,) = list(reproduce(Scale((results[0].watched,)), run, processes=1))
        (failed,) = list(reproduce(Scale((faint,)), run, processes=1))
    assert json.dumps(to_json(again)) == json.dumps(to_json(results))
    assert failed[0].screened == {} and "No attack works" in page(
        "Title", introduction(failed, "s"), make_tables(failed)
    )
    text = page("Title", introduction(results, "smoke"), make_tables(results))
    assert f"{results[0].over_attacks(OURS, 'auroc').mean():.3f} ±" in text and "faint" in text


@pytest.mark.parametrize(("rival", "verdict"), [(0.6, "supported"), (0.95, "contradicted"), (0.81, "undecided here")])
def test_claims_follow_the_areas(rival, verdict):
    noise = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.01])

    planted = study(rival, 0.81, noise)
    told = {one.text.partition(": ")[2]: one for one in list_claims(planted)}
    assert told[f"layers of interest beat {LAST}"].verdict == verdict
    assert told[f"layers of interest beat {LAST}"].effect.interval.estimate == pytest.approx(0.81 - rival)
    assert told["the conformal threshold flags as few clean images as promised, to a point"].verdict == "supported"


def test_a_published_network_is_defended_and_judged_on_images_it_never_saw(tmp_path, monkeypatch):
    cifar_like(tmp_path)
    monkeypatch.setenv("KEYLAYERS_MODELS", "models")
    monkeypatch.setenv("KEYLAYERS_DATA", str(tmp_path))
    mnist, cifar = real()
    assert mnist.task.weights is None and cifar.task.weights is not None and cifar.task.held_from_test
    parts = ImageTask.of(cifar.task.fields()).parts(0)
    assert [len(one) for one in vars(parts).values()] == [4000, 1000, 500, 500]
    assert (parts.train.index < 10_000).all()
    for part in (parts.reference, parts.calibration, parts.test):
        assert (part.index >= 10_000).all() and len(set(part.labels)) == 10
    assert (mnist.seeds, cifar.seeds) == (5, 5)
    held = [set().union(*(getattr(each, name).index for name in ("reference", "calibration", "test")))
            for each in (parts, ImageTask.of(cifar.task.fields()).parts(1))]  # fmt: skip
    assert held[0] == held[1]  # as the page says
    text = introduction([Results(cifar, {}, {}), Results(mnist, {}, {})], "small")
    assert "The network of CIFAR-10 came trained" in text and "draw 2,000 images from the same test part" in text
    assert "intervals of CIFAR-10 cover training and splits, not networks" in text
    assert "answers 0.81 of the test part right (0.918 published)" in text and "intervals of MNIST" not in text
    alone = introduction([Results(mnist, {}, {})], "small")
    assert "images of MNIST are of that data's own test part" in alone
    assert "came trained" not in alone and "JPEG" not in alone


def test_the_scales_are_there_and_the_real_images_come_with_their_folders(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    assert [one.task.name for one in scale_of("small").watched] == ["digits"]
    monkeypatch.setenv("KEYLAYERS_MODELS", "models")
    monkeypatch.setenv("KEYLAYERS_DATA", "data")
    assert [one.task.name for one in scale_of("small").watched] == ["digits", "MNIST", "CIFAR-10"]
    assert needs("label-consistent") and not needs("patch")
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        scale_of("smal")
