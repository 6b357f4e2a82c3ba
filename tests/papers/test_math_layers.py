"""The study of layers for mathematics finds what was planted, and says nothing where nothing can be said."""

import json
import math

import numpy as np
import pytest

from keylayers.errors import BadInput, UnknownName
from keylayers.papers.math_layers import analysis as answers
from keylayers.papers.math_layers.claims import core_claims, further_claims, shared_claim
from keylayers.papers.math_layers.plan import scale_of
from keylayers.papers.math_layers.probes import RECALL, STEP
from keylayers.papers.math_layers.study import BASE, run_study
from keylayers.papers.math_layers.tables import introduction, make_tables, to_json, variants_table
from keylayers.runs import open_run
from keylayers.runs import plain as as_json
from keylayers.studies.pages import adjusted, page
from tests.papers.planted_math import BASES, PlantedLab, blocks, scale


@pytest.fixture
def found(tmp_path):
    """A study of planted models."""

    def make(changes=(), **planted):
        with open_run(tmp_path / str(len(list(tmp_path.iterdir()))), "planted", {}) as run:
            return run_study(PlantedLab(run, **planted), scale(**dict(changes)))

    return make


def claims_of(found, text):
    chosen = [one for one in [*core_claims(found), *further_claims(found)] if text in one.text]
    assert chosen, text
    return chosen


def test_every_model_is_profiled_under_every_seed_and_only_students_have_a_teacher(tmp_path):
    with open_run(tmp_path / "run", "planted", {}) as run:
        lab = PlantedLab(run)
        found = run_study(lab, scale())
    assert [what for what, _ in lab.asked].count("teacher") == 1
    trained = [each for what, each in lab.asked if what == "variant"]
    assert len(trained) == 2 * 3 * 3
    assert all((each["taught_by"] is not None) == (each["kind"] == "distilled") for each in trained)
    profiled = {(each["model"], each["file"], each["seed"]) for what, each in lab.asked if what == "profile"}
    assert len(profiled) == (3 + 2 * 3) * 3
    assert all(len(each) == 3 for each in found.profiles.values()) and len(found.judged) == 6


def test_the_page_of_the_first_seeds_asks_for_nothing_that_the_whole_does_not(tmp_path):
    with open_run(tmp_path / "run", "planted", {}) as run:
        lab = PlantedLab(run)
        whole = run_study(lab, scale(seeds=4))
        asked = [json.dumps(one, default=str) for one in lab.asked]
        first = run_study(lab, scale(seeds=4), 3)
    assert {json.dumps(one, default=str) for one in lab.asked[len(asked) :]} < set(asked)
    assert first.scale.seeds == 3 and {model: each[:3] for model, each in whole.profiles.items()} == first.profiles


def test_what_is_kept_through_post_training_is_told_from_what_all_networks_share(found):
    kept = claims_of(found(), "order blocks more alike")[0]
    assert kept.verdict == "supported" and kept.effect.interval.estimate > 0.5
    remade = claims_of(found(forged=False), "order blocks more alike")[0]
    assert abs(remade.effect.interval.estimate) < 0.4 < kept.effect.interval.estimate
    # every model is worth the same by depth: a base and its variants agree perfectly, and so do strangers
    common = found(common=True, noise=1e-6)
    agreeing = next(one for one in answers.likenesses(common) if one.question == "a base and its variant")
    assert agreeing.interval.estimate > 0.99
    assert abs(claims_of(common, "order blocks more alike")[0].effect.interval.estimate) < 1e-9


def test_the_variants_table_is_a_mean_over_seeds(found):
    rows = {row[0]: row for row in variants_table(found()).rows}
    # rewards rise from seed / 10 to seed, right answers are 0.2 and 0.1 times the seed
    assert rows["llama: rewarded"][6] == "chains of 4, 5 steps; reward 0.10, at the end 1.00"
    assert rows["llama: distilled"][6] == "right by steps 2: 0.20 8: 0.10, base 2: 0.00 8: 0.00"


def test_a_variant_that_training_did_not_change_is_not_judged(found):
    some = found(idle=("rewarded",))
    assert {kind for _, kind in some.judged} == {"instructed", "distilled"}
    assert not any("the rewarded variants" in one.text for one in core_claims(some))
    assert "**no: not judged**" in page("t", introduction(some, "x"), make_tables(some))
    assert {kind for _, kind in found(uneven=("distilled",)).judged} == {"instructed", "rewarded"}
    none = found(idle=("rewarded", "instructed", "distilled"))
    text = page("t", introduction(none, "x"), make_tables(none))
    assert "kept by post-training?" not in text and "bases: without arithmetic's blocks" in text
    assert "variants: without" not in text


@pytest.mark.parametrize(("lost", "verdict"), [((0.8, 0.2), "supported"), ((0.2, 0.8), "contradicted")])
def test_what_arithmetic_loses_is_compared_with_recall_at_the_same_blocks(found, lost, verdict):
    some = found(steps=lost[0], recall=lost[1])
    claim = next(one for one in claims_of(some, "bases: over all blocks steps lose more") if "right" in one.text)
    assert claim.verdict == verdict
    model = (BASES[0], BASE)
    places = answers.critical(answers.damage(some, (model, 1)))
    expected = np.mean(
        [
            (answers.damage(some, (model, 0), STEP, "exact") / 0.9)[places]
            - (answers.damage(some, (model, 0), RECALL, "exact") / 0.9)[places]
        ]
    )
    values = answers.extra_loss(some, [model], "exact")
    assert dict((seeds, value) for value, seeds in values)[1, 0] == pytest.approx(expected)


def test_blocks_are_chosen_under_another_seed_than_judged_so_that_noise_is_not_flattered(found):
    some = found(steps=0.0, recall=0.0, noise=1.0)
    models = [(base, BASE) for base in BASES]
    honest = np.mean([value for value, _ in answers.extra_loss(some, models, "exact")])
    same = np.mean(
        [
            (answers.lost(some, (m, s), STEP, "exact") - answers.lost(some, (m, s), RECALL, "exact"))[
                answers.critical(answers.damage(some, (m, s)))
            ].mean()
            for m in models
            for s in range(3)
        ]
    )
    assert same > 0.25 > abs(honest)


def test_a_probe_that_was_half_forgotten_is_not_taken_for_a_robust_one(found):
    even, forgotten = (found(steps=0.5, recall=0.5, right=right) for right in ((0.9, 0.9), (0.9, 0.3)))
    for text in ("over all blocks steps lose more", "without arithmetic's blocks steps lose more"):
        values = [
            [one.effect.interval.estimate for one in claims_of(each, text) if "right answers" in one.text]
            for each in (even, forgotten)
        ]
        assert len(values[0]) == 2 and values[0] == pytest.approx(values[1])
    none = found(right=(0.9, 0.0))
    told = [one.text for one in further_claims(none)]
    assert not any("right answers" in one for one in told) and any("lose more than recall, loss" in one for one in told)
    assert answers.able(none, none.judged) == []


def test_strangers_of_one_shape_are_told_from_strangers_of_another(found):
    bases = (*BASES, "bundled:llama-again")
    some = found({"bases": bases}, shaped=True, noise=1e-6)
    nearest, every = (
        claims_of(some, "order blocks more alike than two bases of one shape")[0],
        claims_of(some, "also of"),
    )
    assert abs(nearest.effect.interval.estimate) < 1e-9 and "for these bases" in nearest.text
    assert all(one.effect.interval.estimate > 0.2 for one in every if "also of other shapes" in one.text)
    assert answers.same_shape(bases[0], bases[3]) and not answers.same_shape(*bases[:2])
    for kind in ("instructed", "distilled", "rewarded"):
        alone = claims_of(some, f"the {kind} variants alone, against two bases of one shape")[0]
        assert abs(alone.effect.interval.estimate) < 1e-9
    apart = claims_of(found({"bases": bases}), "order blocks more alike than two bases of one shape")[0]
    assert apart.verdict == "supported" and apart.effect.interval.estimate > 0.5
    assert claims_of(found(), "order blocks more alike than")[0].text.count("bases of other shapes") == 1


def test_two_depths_are_compared_on_the_blocks_of_the_shallower(found):
    some = found(common=True, noise=0.0)
    one = next(x for x in answers.likenesses(some) if x.of == "llama, llama-shallow")
    assert one.blocks == blocks(BASES[1]) == 6
    assert one.interval.estimate == pytest.approx(1.0) and one.overlap == 1.0
    assert one.p_value == pytest.approx(1 / 6) and one.shifted < 0.2
    assert one.chance == pytest.approx((8 * 1 / 3 + 1 * 1) / 15)  # 2 of 6: of 15 pairs one is equal, 8 share one


def test_no_two_sides_of_a_comparison_share_a_seed(found):
    for one in answers.likenesses(found()):
        assert all(first != second for first, second in one.seeds)


@pytest.mark.parametrize(("place", "near"), [("critical", True), ("least", False)])
def test_an_elbow_is_near_where_it_was_planted(found, place, near):
    some = found(elbow=place)
    distances = list(answers.elbow_distances(some, [(base, BASE) for base in BASES]))
    assert all((distance == 0) == near for _, _, distance, _ in distances)
    claim = claims_of(some, "bases: the elbow")[0]
    nearer = [chance - distance for _, _, distance, chance in distances]
    assert claim.effect.interval.estimate == pytest.approx(np.mean(nearer))


def test_a_claim_knows_how_many_seeds_stand_behind_its_pairs():
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
    claim = shared_claim("it holds", "us", [(1.0 + 0.1 * (s + t), (s, t)) for s, t in pairs], "units")
    assert claim.effect.pairs == 3 and claim.verdict == "supported"
    # leaving out seed 2, 1, 0 leaves 1.1, 1.2, 1.3: pseudo-values 1.4, 1.2, 1.0 around 1.2
    half = 4.302652729749464 * 0.2 / math.sqrt(3)
    assert claim.effect.interval.high - claim.effect.interval.low == pytest.approx(2 * half)
    t = 1.2 / (0.2 / math.sqrt(3))
    assert claim.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))  # of Student's t with two degrees of freedom
    two = shared_claim("it holds", "us", [(1.0, (0, 1)), (1.1, (1, 0))], "units")
    assert two.verdict == "undecided here" and two.p_value == 1.0
    for constant in (0.1, -0.7, 1 / 3):  # no spread is no more than three seeds of one sign
        equal = shared_claim("it holds", "us", [(constant, pair) for pair in pairs], "units")
        assert equal.p_value == 0.25 and equal.verdict == "undecided here"
    assert shared_claim("it holds", "us", [(0.0, pair) for pair in pairs], "units").p_value == 1.0


def test_the_page_has_every_table_and_the_figures_are_json(found):
    some = found()
    made = make_tables(some)
    assert all(len(row) == len(table.columns) for table in made for row in table.rows)
    text = page("Title", introduction(some, "smoke"), made)
    for words in ("What would refute it", "Beside the paper", "up to 0.80", "llama-narrow: rewarded", "standard error"):
        assert words in text
    assert as_json(to_json(some))["profiles"][0]["model"] == [BASES[0], BASE]
    assert len(adjusted(core_claims(some))) == 8


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bases": BASES[:1], "families": BASES[:1]}, BadInput, "two different bases or more"),
        ({"families": ("bundled:other",)}, BadInput, "one family or more among them"),
        ({"families": ()}, BadInput, "one family or more"),
        ({"seeds": 2}, BadInput, "2 seeds: expected at least 3"),
        ({"kinds": ("instructed", "rewardd")}, UnknownName, "did you mean 'rewarded'"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, error, words):
    with pytest.raises(error, match=words):
        scale(**changes)


def test_scales_have_names_and_the_base_that_is_not_there_is_left_out():
    assert scale_of("smoke").seeds == 3 and set(scale_of("small").bases) >= set(BASES)
    assert scale_of("full").seeds > scale_of("small").seeds
    for name in ("smoke", "small", "full"):
        asked = scale_of(name)
        pairs = [(one, other) for one in asked.families for other in asked.bases if one != other]
        assert any(answers.same_shape(*pair) for pair in pairs)
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        scale_of("smal")
