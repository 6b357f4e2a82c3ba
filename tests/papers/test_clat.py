"""The hardening study in miniature: every arm from one start, few layers trained, tables on planted figures."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from keylayers.errors import Diverged, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.measures.attacks import FeatureAttack, Pgd
from keylayers.measures.robustness import Outcomes
from keylayers.papers.clat import cells, study
from keylayers.papers.clat.cells import ALL, EVERY, RANDOM, Plan
from keylayers.papers.clat.study import ARMS, RIFT, START, Hardening, Results, Scale, digits, real, reproduce, scale_of
from keylayers.papers.clat.tables import SLOW, arms_table, introduction, list_claims, make_tables, to_json
from keylayers.runs import open_run
from keylayers.scores import Selection
from keylayers.studies.image_task import ImageTask
from keylayers.studies.pages import page
from keylayers.training.images import ImageTraining
from tests.papers.little_images import LITTLE, cifar_like

PLAN = Plan(0.1, 1, start_epochs=1, epochs=2, every=1, share=0.05, learning_rate=0.05, test_steps=1)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clat")
    sizes = {"train": 128, "reference": 1, "calibration": 40, "test": 60}
    asked = Hardening(
        ImageTask("few digits", network=LITTLE, sizes=sizes, training=ImageTraining(batch_size=128)), PLAN, 2
    )
    with open_run(folder, "study", {}) as run:
        (results,) = list(reproduce(Scale((asked,)), run, processes=1))
    return results[0], folder


def started(folder):
    """File of the network that seed 0 starts from."""
    stored = [json.loads(file.read_text())["value"] for file in (folder / "parts").glob("started-*.json")]
    return next(cell["result"]["last"] for cell in stored if cell["fields"]["seed"] == 0)


def figured(made):
    """As the study reads a training that left no network."""
    return study._measured(SimpleNamespace(ask=lambda what, asked: []), [], {("arm", 0): made})["arm", 0]


def test_every_arm_trains_what_it_says(found):
    one, _ = found
    assert set(one.arms) == {START, *ARMS, *RIFT}
    network = one.hardening.task.untrained(0)
    whole, layers = sum(value.numel() for value in network.parameters()), named_layers(network, "conv")
    sizes = {layer.name: layer.size for layer in layers}
    for name, arm in ARMS.items():
        for each in one.arms[name]:
            chosen = [names for _, names in each["selections"]]
            spent = [sum(sizes[name] for name in names) for names in chosen if arm.choose != ALL]
            assert each["trained"] == (whole if arm.choose == ALL else np.mean(spent))
            assert len(chosen) == (2 if arm.again and arm.choose not in (ALL, EVERY) else 1)
            assert len(each["watched"]) == PLAN.epochs and each["best_epoch"] == int(np.argmax(each["watched"]))
    drawn = {tuple(names) for each in one.arms["random layers"] for _, names in each["selections"]}
    assert len(drawn) > 1 and ARMS["random layers"].choose == RANDOM


def test_every_arm_takes_the_rate_that_calibration_images_prefer(found):
    """All that was tried, every rate with every seed, lies in the run folder; no training of these blew up."""
    one, folder = found
    tried = {}
    for file in (folder / "parts").glob("hardened-*.json"):
        held = json.loads(file.read_text())["value"]
        fields = held["fields"]
        key = (json.dumps(fields["arm"], sort_keys=True), fields["rate"])
        tried.setdefault(key, []).append(held["result"]["watched"][-1])
    assert one.rates["everything, a tenth of the rate"] == one.rates[SLOW] == 0.1
    for name, arm in ARMS.items():
        means = {
            rate: sum(tried[json.dumps(cells.fields_of(arm), sort_keys=True), rate]) for rate in arm.rates or PLAN.rates
        }
        assert means[one.rates[name]] == max(means.values())


def test_an_arm_that_diverges_gets_no_image_right_and_the_page_counts_it(found, monkeypatch):
    one, folder = found

    def broken(*given, **options):
        raise Diverged("the loss is nan in step 3")

    monkeypatch.setattr(cells, "harden", broken)
    made = cells.hardened(
        folder, task=one.hardening.task.fields(), plan=cells.fields_of(PLAN), seed=0, rate=1.0,
        file=started(folder), arm=cells.fields_of(ARMS["every convolution"]),
    )  # fmt: skip
    assert made["diverged"] == "the loss is nan in step 3" and made["watched"] == [0.0] and made["trained"] > 0
    assert made["last"] is None and made["best"] is None
    arms = {**one.arms, "every convolution": (figured(made), one.arms["every convolution"][1])}
    (row,) = [row for row in arms_table(replace(one, arms=arms)).rows if row[0] == "every convolution"]
    assert row[-1] == "1 of 2"


def test_rift_that_diverges_gets_no_image_right_either(found, monkeypatch):
    one, folder = found

    def broken(*given, **options):
        raise Diverged("the loss is inf in epoch 1")

    monkeypatch.setattr(cells, "rift", broken)
    made = cells.rifted(
        folder, task=one.hardening.task.fields(), plan=cells.fields_of(PLAN), seed=0,
        file=started(folder), choose=RIFT["RiFT"],
    )  # fmt: skip
    assert made["diverged"] == "the loss is inf in epoch 1" and made["last"] is None and made["share"] == 0.0
    arms = {**one.arms, "RiFT": (figured(made), one.arms["RiFT"][1])}
    (row,) = [row for row in arms_table(replace(one, arms=arms)).rows if row[0] == "RiFT"]
    assert row[-1] == "1 of 2"


def test_test_images_are_seen_by_chosen_networks_alone_and_each_network_once(found):
    """Of two rates one is chosen: the networks of the other are not measured, nor is a best one that is the last."""
    one, folder = found
    stored = [json.loads(file.read_text())["value"] for file in (folder / "parts").glob("*ed-*.json")]
    rates = {json.dumps(cells.fields_of(arm), sort_keys=True): one.rates[name] for name, arm in ARMS.items()}
    chosen, left = set(), set()
    for cell in stored:
        fields, networks = cell["fields"], {cell["result"].get("last"), cell["result"].get("best")} - {None}
        kept = "arm" not in fields or fields["rate"] == rates[json.dumps(fields["arm"], sort_keys=True)]
        (chosen if kept else left).update(networks)
    measured = [cell["fields"]["file"] for cell in stored if cell["fields"]["do"] == "measured"]
    assert sorted(measured) == sorted(chosen) and left and not left & chosen
    assert all(each["best"] == each["last"] for each in one.arms["CLAT"] if each["best_epoch"] == PLAN.epochs - 1)


def test_the_worst_case_counts_an_image_that_any_attack_turns(found, monkeypatch):
    """Planted outcomes: the attack on the loss turns the first half, that on the features every third image."""
    hardening, count = found[0].hardening, 60
    left = {Pgd: np.arange(count) >= 30, FeatureAttack: np.arange(count) % 3 != 0}
    monkeypatch.setattr(cells, "robust_accuracy", lambda model, x, y, attack: Outcomes(attack.name, left[type(attack)]))
    plan = cells.fields_of(hardening.plan)
    made = cells.measured(
        found[1], task=hardening.task.fields(), plan=plan, seed=0, file=started(found[1]), checked=False
    )
    assert (made["loss"], made["features"]) == (0.5, pytest.approx(2 / 3))
    assert made["robust"] == pytest.approx(1 / 3)


def test_a_finished_study_is_read_back_and_its_page_says_its_figures(found, monkeypatch):
    one, folder = found
    monkeypatch.setattr("keylayers.papers.clat.cells.DO", {})
    with open_run(folder, "study", {}) as run:
        (again,) = list(reproduce(Scale((one.hardening,)), run, processes=1))
    assert json.dumps(to_json(again)) == json.dumps(to_json([one]))
    text = page("Title", introduction([one], "smoke"), make_tables([one]))
    assert f"{one.values('CLAT', 'clean').mean():.3f} ±" in text and "null result" in text


@pytest.mark.parametrize(("rival", "verdict"), [(0.5, "supported"), (0.9, "contradicted"), (0.7, "undecided here")])
def test_claims_follow_the_accuracies(found, rival, verdict):
    noise = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.01])
    opposite = {"supported": "contradicted", "contradicted": "supported"}

    def seen(robust: float, clean: float, shift: int = 1) -> tuple:
        turned = np.roll(noise, shift)
        last = [{"robust": robust + one, "clean": clean + one} for one in turned.tolist()]
        return tuple({"last": one, "best": {}, "trained": 1} for one in last)

    arms = {name: seen(0.1, 0.2) for name in (START, *ARMS, *RIFT)}
    arms |= {
        START: seen(0.3, 0.6),
        "CLAT, fast": seen(0.2, 0.3, 0),
        "CLAT": seen(0.7, 0.8, 0),
        SLOW: seen(0.3, 0.4, 0),
        "random layers": seen(rival, 1.5 - rival),
    }
    arms["RiFT"] = tuple({**one, "share": 0.5} for one in seen(0.0, 0.55, 0))
    told = {one.text.removeprefix("few digits: "): one for one in list_claims(Results(found[0].hardening, arms))}
    expected = {
        "CLAT beats random layers, robust accuracy after the last epoch": (0.7 - rival, verdict),
        "CLAT beats random layers, clean accuracy after the last epoch": (rival - 0.7, opposite.get(verdict, verdict)),
        f"CLAT beats {START}, robust accuracy after the last epoch": (0.4, "supported"),
        f"CLAT beats {START}, clean accuracy after the last epoch": (0.2, "supported"),
        "CLAT, fast beats everything at as many attacks, robust accuracy after the last epoch": (0.1, "supported"),
        f"{SLOW} beats everything, a tenth of the rate too, clean accuracy after the last epoch": (0.2, "supported"),
        "RiFT raises clean accuracy": (-0.05, "contradicted"),
    }
    for text, (effect, said) in expected.items():
        assert told[text].verdict == said, text
        assert told[text].effect.interval.estimate == pytest.approx(effect), text
    arms["RiFT"] = tuple({**one, "share": 0.0} for one in arms["RiFT"])
    assert not any(one.text.startswith("few digits: RiFT") for one in list_claims(Results(found[0].hardening, arms)))


def test_a_published_network_is_tested_on_images_it_never_saw(tmp_path, monkeypatch):
    cifar_like(tmp_path)
    monkeypatch.setenv("KEYLAYERS_MODELS", "models")
    monkeypatch.setenv("KEYLAYERS_DATA", str(tmp_path))
    _, cifar = real()
    parts = ImageTask.of(cifar.task.fields()).parts(0)
    assert cifar.task.weights is not None and (parts.train.index < 10_000).all()
    assert all((part.index >= 10_000).all() for part in (parts.reference, parts.calibration, parts.test))


def test_an_unknown_scale_is_named(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    assert scale_of("small").hardenings == (digits(),)
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        scale_of("smal")


def test_layers_of_like_size_are_others_than_the_critical_ones():
    layers = named_layers(digits().task.untrained(0), "conv")
    for one in layers:
        for seed in range(4):
            critical = Selection.of(layers, names=[one.name])
            (chosen,) = cells._alike(critical, seed).chosen
            nearest = min(abs(layer.size - one.size) for layer in layers if layer.name != one.name)
            assert chosen.name != one.name and abs(chosen.size - one.size) == nearest
    pair = Selection.of(layers, names=[layers[0].name, layers[1].name])
    assert not set(cells._alike(pair, 0).names) & set(pair.names) and len(cells._alike(pair, 0)) == 2
