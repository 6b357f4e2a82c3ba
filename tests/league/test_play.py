"""The league in a planted world: who knows what layers are worth wins, at every budget, and beats random sets."""

from collections import Counter

import numpy as np
import pytest

from keylayers.errors import BadInput, UnknownName
from keylayers.league import tables
from keylayers.league.entrants import BEST, ENTRANTS, KINDS, THIN, TURNS, League, entrants_of
from keylayers.league.play import games
from keylayers.league.standings import draw_standings
from keylayers.papers.ila.tasks import bundled_task
from keylayers.runs import open_run
from keylayers.studies.arms import Budget
from keylayers.studies.retraining import ALL, RANDOM, LearningRateGrid
from tests.papers.planted import PlantedDesk

CHOSEN = ("midpoint", "midpoint, reversed", "norm of the change", "block influence (ShortGPT)", "last layers")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    asked = League((bundled_task("pirate"),), CHOSEN, seeds=6, rates=LearningRateGrid((1e-2, 3e-2)))
    with open_run(tmp_path_factory.mktemp("league"), "league", {}) as run:
        return list(games(PlantedDesk(run), asked.tasks[0], asked))


def test_who_knows_what_layers_are_worth_wins_at_every_budget(played):
    assert [one.budget for one in played] == [0.1, 0.3]
    for one in played:
        means = {name: np.mean([each["test"] for each in trained]) for name, trained in one.trained.items()}
        del means[ALL], means[THIN], means[TURNS]
        assert min(means, key=means.get) == "midpoint" and max(means, key=means.get) == "midpoint, reversed"
        assert set(one.rates.values()) == {1e-2} and one.gains(ALL) == pytest.approx([1.0] * 6)
        assert one.kept["midpoint"][0] == pytest.approx(one.trained["midpoint"][0]["test"])
        assert TURNS not in one.kept and THIN not in one.chosen


def test_every_set_spends_the_budget_and_rivals_are_asked_for_as_they_are(tmp_path):
    asked = League((bundled_task("pirate"),), CHOSEN[:1], budgets=(0.3,), seeds=2, rates=LearningRateGrid((1e-2,)))
    with open_run(tmp_path / "run", "league", {}) as run:
        desk = PlantedDesk(run)
        (one,) = games(desk, asked.tasks[0], asked)
    layers = desk.layers(asked.tasks[0])
    total, largest = sum(layer.lora_size for layer in layers), max(layer.lora_size for layer in layers)
    for name, sets in one.chosen.items():
        spent = [sum(layer.lora_size for layer in layers if layer.name in set(names)) for names in sets]
        assert name == ALL or all(0.3 * total - largest <= each <= 0.306 * total for each in spent)
    options = [each for _, what, each in desk.asked if what == "retrain"]
    lower = [each for each in options if "rank" in each]  # 30 % of rank 8 is 2.4: rank 3 on 80 % of the parameters
    assert {each["rank"] for each in lower} == {3} and len({tuple(each["layers"]) for each in lower}) == 2
    for each in lower:
        spent = 3 / 8 * sum(layer.lora_size for layer in layers if layer.name in set(each["layers"]))
        assert 0.3 * total - largest <= spent <= 0.3 * total
    turns = [each["turns"] for each in options if "turns" in each]
    assert turns[0] == {"every": 5, "policy": f"random:params={100 * Budget(0.3).share:g}%:of=lora:seed={{draw}}"}
    drawn = [tuple(each["layers"]) for each in options if "turns" not in each and "rank" not in each]
    assert len(set(drawn)) == 2 + 1 + 6 + 6  # the best of two seeds, all, three random sets of either sort of each seed


def test_random_sets_of_its_kinds_show_how_much_of_the_best_is_kinds(played):
    kinds = {layer.name: layer.kind for layer in PlantedDesk(None).layers(bundled_task("pirate"))}
    for one in played:
        for best, drawn in zip(one.chosen[BEST], one.chosen[KINDS], strict=True):
            assert Counter(map(kinds.get, best)) == Counter(map(kinds.get, drawn)) and set(best) != set(drawn)
    text = f"{BEST} beats {KINDS}"
    (found,) = [claim for claim in tables.list_claims(played) if claim.text == text]
    ours, theirs = (tables.gain(played, name) for name in (BEST, KINDS))
    assert found.effect.interval.estimate == pytest.approx(np.mean(ours - theirs))


def test_tables_say_where_the_chosen_layers_lie(played):
    one = played[0]
    shown = {row[0]: row[2] for row in tables.table_of(one).rows}
    names = [name for names in one.chosen[BEST] for name in names]
    shares = {part: np.mean([f".{part}." in name for name in names]) for part in ("mlp", "self_attn")}
    shares["lm_head"] = np.mean([name == "lm_head" for name in names])
    for part, share in shares.items():
        assert (f"{part} {share:.0%}" in shown[BEST].split(", ")) == (share > 0)
    assert shown[ALL].startswith("lm_head 1%") and shown[TURNS] == ""


def test_layers_of_one_block_come_in_another_order_with_every_seed(tmp_path):
    names = ("block influence (ShortGPT)", "random blocks", "last layers")
    asked = League((bundled_task("pirate"),), names, budgets=(0.05,), seeds=6, rates=LearningRateGrid((1e-2,)))
    with open_run(tmp_path / "run", "league", {}) as run:
        (one,) = games(PlantedDesk(run, by_block=True), asked.tasks[0], asked)
    for name in names[:2]:
        assert len({tuple(sets) for sets in one.chosen[name]}) > 3
        assert any("mlp" in layer for sets in one.chosen[name] for layer in sets)
    assert len(set(one.chosen["last layers"])) == 1


def test_a_league_in_which_training_brings_nothing_says_so_before_it_is_played(tmp_path):
    asked = League((bundled_task("pirate"),), CHOSEN[:1], budgets=(0.3,), seeds=2, rates=LearningRateGrid((3e-2,)))
    with open_run(tmp_path / "run", "league", {}) as run:
        desk = PlantedDesk(run, harm=20.0)
        with pytest.raises(BadInput, match=r"does not lower the loss .*\(10\.000 before, .* after"):
            next(games(desk, asked.tasks[0], asked))
    assert not any(what == "score" for _, what, _ in desk.asked)


def test_who_cannot_score_is_left_out_and_says_why(tmp_path):
    asked = League((bundled_task("pirate"),), CHOSEN[:3], budgets=(0.3,), seeds=2, rates=LearningRateGrid((1e-2,)))
    with open_run(tmp_path / "run", "league", {}) as run:
        (one,) = games(PlantedDesk(run, unable=("delta_norm",)), asked.tasks[0], asked)
        with pytest.raises(BadInput, match=r"no entrant can score .* path_integral needs more blocks"):
            next(games(PlantedDesk(run, unable=("delta_norm", "path_integral")), asked.tasks[0], asked))
    assert one.unable == {"norm of the change": "delta_norm needs more blocks"}
    assert "norm of the change" not in one.trained and "midpoint" in one.trained
    notes = tables.standings([one]).notes
    assert "Left out, norm of the change: delta_norm needs more blocks" in notes


def test_standings_and_claims_follow_from_the_games(played):
    table = tables.standings(played)
    order = [row[0] for row in table.rows]
    assert order[0] == "midpoint" and order[-3:] == ["midpoint, reversed", THIN, TURNS] and ALL not in order
    assert {row[3] for row in table.rows} == {"100.0%, 100.0%"}  # in the planted world every arm trains one parameter
    assert table.rows[0][1] == "1.000 ± 0.000" and tables.ranks(played).shape == (2, 6, len(order))
    verdicts = {claim.text: claim.verdict for claim in tables.list_claims(played)}
    assert verdicts[f"midpoint beats {RANDOM}"] == "supported"
    assert verdicts[f"midpoint, reversed beats {RANDOM}"] == "contradicted"
    found = tables.make_tables(played)
    assert len(found) == 4 and all(len(row) == len(one.columns) for one in found for row in one.rows)
    assert tables.to_json(played)[0]["arms"]["midpoint"]["trained"][0]["test"] < 10


def test_every_criterion_has_its_entrants():
    named = {way.criterion for way in ENTRANTS.values()}
    from keylayers.criteria import CRITERIA, get

    elsewhere = {
        name for name in CRITERIA if get(name).images or get(name).labelled or "skip" in get(name).granularities
    }
    assert named == set(CRITERIA) - elsewhere
    assert entrants_of("depth_only") == ("last layers", "first layers")
    with pytest.raises(UnknownName, match="did you mean 'fisher'"):
        entrants_of("fischer")
    with pytest.raises(BadInput, match="skip_suppression does not play in the league of language models; expected one"):
        entrants_of("skip_suppression")


def test_the_picture_has_every_arm_in_the_order_of_the_table(played, tmp_path):
    shown = tables.picture_of(played)
    assert [one.name for one in shown] == [row[0] for row in tables.standings(played).rows]
    assert {one.name for one in shown if one.control} == {RANDOM, KINDS, TURNS, THIN}
    assert {one.name for one in shown if one.cost is None} == {RANDOM, KINDS, TURNS, THIN}
    files = draw_standings(shown, tmp_path)
    drawn = files[0].read_text()
    assert [file.name for file in files] == ["league.svg", "league.png"] and all(one.name in drawn for one in shown)
    assert drawn == draw_standings(shown, tmp_path / "again")[0].read_text()
