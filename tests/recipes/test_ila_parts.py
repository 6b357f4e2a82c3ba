"""The ILA study's other questions, asked of a planted world in which every layer's worth is known."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from keylayers.layers.naming import named_layers
from keylayers.models.loading import load_shape
from keylayers.recipes import ila_answers, ila_overlaps
from keylayers.recipes.desk import Desk
from keylayers.recipes.ila_frugal import EARLY, WHOLE, frugal
from keylayers.recipes.ila_plan import ALL, RANDOM, Frugal, Rates, Reasoning, Stability, Sweep, Transfer
from keylayers.recipes.ila_reasoning import reasoning
from keylayers.recipes.ila_stability import overlaps
from keylayers.recipes.ila_sweeps import sweeps
from keylayers.recipes.ila_transfer import OWN, transfer
from keylayers.runs import digest, open_run
from keylayers.scores import LayerScores
from keylayers.scores.files import save

RATES = Rates((1e-2, 3e-2), seeds=2)


def worth(layer) -> float:
    """What training a layer brings, in nats: more at the top, and MLPs more than attention."""
    return (2.0 if layer.kind.startswith("mlp") else 1.0) * (1 + (layer.block if layer.block is not None else 3)) / 100


@dataclass(frozen=True)
class PlantedDesk(Desk):
    """Answers without computing: `path_integral` ranks by worth, everything else by chance."""

    asked: list = field(default_factory=list)

    def ask(self, task, what, asked):
        self.asked.extend((task, what, each) for each in asked)
        return [
            getattr(self, what)(task, named_layers(load_shape(task.inputs.model), "linear"), **each) for each in asked
        ]

    def names(self, task, layers):
        return {"names": [layer.name for layer in layers]}

    def before(self, task, layers, answers=False):
        return {"test": 10.0, "exact": 0.0}

    def stage_one(self, task, layers, seed, lr, share):
        return {"adapter": f"{task.name}-{seed}-{share}", "seconds": 20 * share}

    def score(self, task, layers, criterion, settings, adapter, records):
        key = digest([task.fields(), criterion, settings, adapter, records])[:12]
        noise = np.random.default_rng(int(key, 16)).normal(size=len(layers))
        values = np.array([worth(one) for one in layers]) + 1e-3 * noise if criterion == "path_integral" else noise
        name = f"{key}.json"
        save(LayerScores(tuple(layers), values, criterion, "linear"), self.run.path / name)
        return {"file": name, "seconds": 1.0}

    def retrain(self, task, candidates, *, layers, seed, lr, nf4=False, answers=False):
        """3e-2 is the wrong rate, 4 bits cost a little, and so does every seed."""
        chosen = set(layers)
        loss = 10 - sum(worth(one) for one in candidates if one.name in chosen) + 0.01 * seed
        loss += (lr > 0.02) + 0.1 * nf4
        return {"test": loss, "calibration": loss, "seconds": 20.0, "trainable": 1, "exact": 1 - loss / 10}


@pytest.fixture
def desk(tmp_path):
    with open_run(tmp_path / "run", "study", {}) as run:
        yield PlantedDesk(run)


def test_more_of_the_best_layers_recover_more_and_beat_random_at_every_share(desk):
    exact, rounded = sweeps(desk, Sweep(shares=(0.1, 0.3, 0.75), quantised=(0.3,), seeds=5, rates=RATES))
    gains = [exact.gains("midpoint", share).mean() for share in (0.1, 0.3, 0.75)]
    assert gains == sorted(gains) and gains[-1] < 1 == exact.gains(ALL, 1.0).mean()
    for share in (0.1, 0.3, 0.75):
        assert exact.gains("midpoint", share).min() > exact.gains(RANDOM, share).max()
    assert set(exact.rates.values()) == {1e-2}
    assert rounded.nf4 and rounded.losses["midpoint", 0.3][0] == pytest.approx(exact.losses["midpoint", 0.3][0] + 0.1)
    assert "4-bit" in ila_answers.sweep_table(rounded).title
    verdicts = {one.text: one.verdict for one in ila_answers.sweep_claims(exact)}
    assert verdicts["pirate: 30% by midpoint beats random, same size"] == "supported"
    assert (
        verdicts["pirate: freezing the worst 25 % by midpoint helps"] == "contradicted"
    )  # every layer is worth something


def test_an_early_choice_costs_its_share_and_is_judged_beside_the_whole(desk):
    (one,) = frugal(desk, Frugal(tasks=("pirate",), seeds=3))
    assert one.seconds[EARLY] == (20 * 0.1 + 1,) * 3 and one.seconds[WHOLE] == (21,) * 3
    looked = {each["records"] for task, what, each in desk.asked if what == "score" and each["adapter"].endswith("0.1")}
    assert looked == {32} and all(task.training.steps == 240 for task, _, _ in desk.asked)
    assert max(one.losses[EARLY]) < min(one.losses[RANDOM])
    row = ila_answers.frugal_table([one]).rows[1]
    assert row[1] == EARLY and row[2] == "0.150" and float(row[3]) > 0.9


def test_reasoning_counts_right_answers(desk):
    found = reasoning(desk, Reasoning(seeds=3, rates=RATES))
    assert all(each.get("answers") for _, what, each in desk.asked if what == "retrain")
    assert np.mean(found.exact["midpoint"]) > np.mean(found.exact[RANDOM])
    assert ila_answers.reasoning_table(found).rows[0][0] == ALL


def test_a_carried_ranking_is_judged_beside_its_depth_and_kinds_alone(desk):
    found = transfer(desk, Transfer(sources=("bundled:llama-shallow",), seeds=3, rates=RATES))
    source = "bundled:llama-shallow"
    assert set(found.losses) == {OWN, RANDOM, source, f"{source}, depth only", f"{source}, kind only"}
    assert max(found.losses[source]) < min(found.losses[RANDOM])
    assert np.mean(found.losses[OWN]) <= np.mean(found.losses[source]) < np.mean(found.losses[f"{source}, kind only"])
    assert len(ila_answers.transfer_claims(found)) == 4 and len(ila_answers.transfer_table(found).rows) == 5


def test_overlaps_pair_independent_procedures_and_say_which_agree(desk, monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    asked = Stability(seeds=2, milestones=(0.5,), records=(64,), models=("bundled:llama", "bundled:llama-shallow"))
    found = overlaps(desk, asked)
    for one in found:
        assert one.pairs
        for (first, i), (second, j), _, _ in one.pairs:
            assert (first, i) == (second, j) if "same run" in one.of else i != j
    questions = list(dict.fromkeys(one.question for one in found))
    assert questions == [
        "between data sets", "between seeds", "between seeds of the mask alone", "between initial scores",
        "moments of training", "amount of data", "diversity of data", "between models",
    ]  # fmt: skip
    table = ila_overlaps.overlap_table(found)
    of = {(row[0], row[2]): row for row in table.rows}
    assert float(of["between seeds", "midpoint"][8]) < 1e-6  # beyond chance
    assert float(of["between seeds", "norm"][8]) > 0.05  # planted at random
    assert float(of["between models", "midpoint"][7]) > 0.9
