"""What is asked: true answers, of equally many tokens, about people and chains that no other seed has."""

import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from keylayers.data.tokenisation import IGNORED
from keylayers.errors import BadInput
from keylayers.models.sources import BUNDLED
from keylayers.papers.math_layers.probes import CHAIN, RECALL, STEP, draw_probes, equalised, recalled, steps
from keylayers.world import facts


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED)


def answered(examples):
    return [[label for label in labels if label != IGNORED] for labels in examples.labels]


def test_steps_and_facts_have_answers_of_the_same_lengths(tokenizer):
    made = draw_probes(tokenizer, 1, 5, 40)
    lengths = [Counter(map(len, answered(made.examples[name]))) for name in (STEP, RECALL)]
    assert lengths[0] == lengths[1] == made.lengths and sum(lengths[0].values()) == 40
    assert set(lengths[0]) == {3, 4} and min(lengths[0].values()) > 0
    assert len(made.examples[CHAIN]) == 20 and min(map(len, answered(made.examples[CHAIN]))) > 20


def test_no_seed_shares_a_person_or_a_chain_with_another(tokenizer):
    parts = [draw_probes(tokenizer, seed, 4, 40) for seed in range(4)]
    names = [set(re.findall(r"[A-Z][a-z]+", " ".join(p.examples[RECALL].origins))) & set(facts.people()) for p in parts]
    assert all(len(some) > 10 for some in names) and sum(map(len, names)) == len(set.union(*names))
    for probe in (STEP, CHAIN):
        asked = [set(re.findall(r"Question: (.*)", " ".join(p.examples[probe].origins))) for p in parts]
        assert sum(map(len, asked)) == len(set.union(*asked)) == sum(len(p.examples[probe]) for p in parts)


def test_a_step_asks_for_the_value_that_its_operation_gives():
    for prompt, answer in steps(200):
        told = re.findall(r"(Start|Add|Take|Double)(?: (\d+))?(?:[:.])", prompt.split("Answer:")[1])
        values = [int(number) for number in re.findall(r": (\d+)\.", prompt.split("Answer:")[1])]
        before = values[-1] if values else int(told[0][1])
        operation, operand = told[-1][0], int(told[-1][1] or 0)
        after = {"Add": before + operand, "Take": before - operand, "Double": 2 * before}[operation]
        assert answer == f" {after}." and prompt.endswith(":")


def test_facts_are_asked_through_templates_the_base_never_read_about_people_no_variant_meets():
    asked = list(recalled())
    assert len(asked) == len(set(asked)) > 1000
    person, (prompt, answer) = asked[0]
    assert facts.split_of_person(person) != "train" and person in prompt
    assert answer[1:-1] in facts.about()[person].values()
    trained = {
        facts.prompt_and_object(fact, template)[0]
        for fact in facts.list_facts()
        for template in range(facts.TEMPLATES)
        if template not in facts.held_out(fact)
    }
    assert not trained & {prompt for _, (prompt, _) in asked}


def test_equal_lengths_are_counted_not_assumed():
    few = [("a", "xx"), ("b", "yyyy"), ("c", "zz"), ("d", "w" * 9)]
    many = [("1", "11"), ("2", "222"), ("3", "3333"), ("4", "44"), ("5", "55")]
    ours, theirs = equalised(few, many, lambda pair: len(pair[1]), 3)
    assert [len(pair[1]) for pair in ours] == [len(pair[1]) for pair in theirs] == [2, 2, 4]
    assert ours[2] == ("b", "yyyy") and theirs == [("1", "11"), ("4", "44"), ("3", "3333")]


@pytest.mark.parametrize(
    ("few", "many", "words"),
    [
        ([("a", "x")], [("1", "22")] * 9, "0 facts have answers as long as a number"),
        ([("a", "xx"), ("b", "yy")], [("1", "22")], "no 2 numbers have answers of the lengths"),
    ],
)
def test_lengths_that_do_not_meet_are_refused(few, many, words):
    with pytest.raises(BadInput, match=words):
        equalised(few, many, lambda pair: len(pair[1]), len(few))


def test_a_seed_that_is_none_and_more_than_there_is_are_refused(tokenizer):
    with pytest.raises(BadInput, match="seed 3 of 3"):
        draw_probes(tokenizer, 3, 3, 8)
    with pytest.raises(BadInput, match="ask for fewer records or fewer seeds"):
        draw_probes(tokenizer, 0, 3, 4000)
