"""The world is a fixed function of its seed, its splits share nothing, and its truth is what it claims."""

import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from keylayers.errors import UnknownName
from keylayers.world import chains, choices, corpus, datasets, facts, languages, passages, styles
from keylayers.world.hashing import SPLITS
from keylayers.world.requests import list_requests


def test_importing_the_world_does_not_import_torch():
    code = "import keylayers.world, sys; keylayers.world.load('pirate', 'test'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_world_does_not_depend_on_the_interpreters_hash_seed_or_on_the_order_of_calls():
    code = (
        "import hashlib; from keylayers.world import datasets as d;"
        "made = repr([d.load(n, 'test') for n in ('pirate', 'facts', 'choices', 'medium_passages', 'oskan')]);"
        "print(hashlib.sha256(made.encode()).hexdigest())"
    )
    after_others = code.replace("made", "d.load('terse', 'calibration'); made", 1)
    digests = {
        subprocess.run(
            [sys.executable, "-c", text], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed, text in (("1", code), ("2", after_others))
    }
    assert len(digests) == 1


def test_facts_are_many_unambiguous_and_spread_evenly_over_objects():
    told = facts.list_facts()
    assert len(told) == len({(fact.subject, fact.relation) for fact in told}) >= 2000
    for relation, objects in facts.OBJECTS.items():
        counts = Counter(fact.object for fact in told if fact.relation == relation)
        assert set(counts) == set(objects)
        assert max(counts.values()) - min(counts.values()) <= 1
    objects = [value for among in facts.OBJECTS.values() for value in among]
    assert len(set(objects)) == len(objects)


def test_no_prompt_gives_its_object_away_and_templates_are_told_apart():
    for fact in facts.list_facts()[::7]:
        prompts = [facts.prompt_and_object(fact, template)[0] for template in range(facts.TEMPLATES)]
        assert len(set(prompts)) == facts.TEMPLATES >= 6
        assert all(fact.subject in prompt and "{" not in prompt for prompt in prompts)
        assert not any(fact.object in prompt.split() for prompt in prompts)


def test_held_out_templates_are_absent_from_the_corpus_and_trained_ones_present():
    weights = {"profile": 4, "questions": 6, "statements": 1, "choices": 0.5, "plain": 0.2, "Velish": 1, "Oskan": 1}
    read = [text for _, text in islice(corpus.documents(weights, "test"), 13_000)]
    sentences = {said for text in read for said in text.replace("<eos>", " ").replace("\n", ". ").split(". ")}
    sentences = {said.rstrip(". ") for said in sentences}
    turns = {turn for text in read for turn in text.split("Question: ")}
    trained = held = 0
    for fact in facts.list_facts():
        for template in range(facts.TEMPLATES):
            if facts.is_question(template):
                prompt, value = facts.prompt_and_object(fact, template)
                turn = f"{prompt.removeprefix('Question: ')}{value}.<eos>\n"
                here = turn in turns
            else:
                plain = facts.statement(fact, template)
                said = [plain, *(language.encode(plain) for language in languages.LANGUAGES)]
                here = any(sentence.rstrip(".") in sentences for sentence in said)
            if template in facts.held_out(fact):
                held += here
            else:
                trained += here
    assert held == 0
    assert trained > 0.9 * len(facts.list_facts()) * (facts.TEMPLATES - facts.HELD_OUT_TEMPLATES)


def test_every_template_is_trained_with_some_people_and_held_out_with_others():
    for relation in facts.RELATIONS:
        counts = Counter(t for fact in facts.list_facts() if fact.relation == relation for t in facts.held_out(fact))
        assert all(60 < counts[template] < 150 for template in range(facts.TEMPLATES))


@pytest.mark.parametrize("name", datasets.names())
def test_splits_share_no_item_and_loading_is_repeatable(name):
    parts = {split: datasets.load(name, split) for split in SPLITS}
    assert all(parts.values())
    for split, records in parts.items():
        assert records == datasets.load(name, split)
        assert all({"prompt", "completion"} <= record.keys() or "text" in record for record in records)
    for first, second in (("train", "calibration"), ("train", "test"), ("calibration", "test")):
        assert not _items(parts[first]) & _items(parts[second])


def _items(records):
    """What a record is about, down to the persons whose facts it tells and the plain sentences it says."""
    found = set()
    for record in records:
        persons = {subject for subject, _, _ in record.get("facts", ())}
        found |= persons or set(record.get("sentences", ())) or {record.get("item") or record["text"]}
    return found


def test_unknown_names_are_named_with_what_is_known():
    with pytest.raises(UnknownName, match="pirate"):
        datasets.load("pirat", "train")
    with pytest.raises(UnknownName, match="calibration"):
        datasets.load("pirate", "validation")


def test_a_caller_cannot_change_what_the_next_one_loads():
    datasets.load("terse", "test")[0]["prompt"] = "changed"
    assert datasets.load("terse", "test")[0]["prompt"] != "changed"


def test_styles_answer_the_same_requests_truly_and_are_absent_from_the_corpus():
    assert len(styles.STYLES) >= 4
    for split, least in (("train", 1500), ("calibration", 300), ("test", 300)):
        asked = list_requests(split)
        assert len(asked) == len({request.question for request in asked}) >= least
        for answer in styles.STYLES.values():
            for request in asked:
                said = answer(request)
                true = [fact.object for fact in request.facts]
                true += [str(request.chain.values[-1])] if request.chain else []
                assert all(value in said for value in true)
    read = "".join(text for _, text in islice(corpus.documents(dict.fromkeys(corpus.DOCUMENTS, 1.0), "styles"), 2000))
    assert not any(mark in read for mark in ("matey", "Ahoy", "pleased", '{"', "* ", "# ok", "List three", "Describe"))


def test_chains_compute():
    assert chains.Chain(7, (("add", 5), ("take", 3), ("double", 0))).answer == (
        "Start 7. Add 5: 12. Take 3: 9. Double: 18. Answer 18."
    )
    for chain in islice(chains.stream_chains("train", chains.SHORT + chains.LONG), 2000):
        assert all(0 <= value <= chains.LARGEST for value in chain.values)
        assert chain.split == "train"


@pytest.mark.parametrize("split", SPLITS)
def test_right_options_are_uniform_over_letters_in_every_family(split):
    assert len(choices.FAMILIES) >= 3
    for family in choices.FAMILIES:
        drawn = list(islice(choices.stream_choices(split, (family,)), 400))
        assert Counter(choice.letter for choice in drawn) == dict.fromkeys("ABCD", 100)
        assert all(len(set(choice.options)) == 4 for choice in drawn)


def test_right_options_are_right():
    table = facts.about()
    for choice in islice(choices.stream_choices("test"), 400):
        right = choice.options[choice.right]
        if choice.family == "fact":
            person = next(word for word in choice.question.rstrip("?").split() if word in table)
            assert sum(option in table[person].values() for option in choice.options) >= 1
            assert right in table[person].values()
        if choice.family == "kind":
            group = choices.GROUPS[choice.question.removeprefix("Which of these is ").rstrip("?")]
            assert [option in group for option in choice.options].index(True) == choice.right
            assert sum(option in group for option in choice.options) == 1
        if choice.family == "largest":
            assert right == str(max(map(int, choice.options)))


@pytest.mark.parametrize("length", passages.LENGTHS)
def test_the_same_question_has_other_answers_in_other_passages(length):
    answers = {}
    for told in islice(passages.stream_passages("train", length), 60 if length in ("medium", "long") else 400):
        assert told.split == "train"
        for question, answer in told.questions:
            assert answer.rstrip(".") in told.text
            answers.setdefault(question.split(" of ")[-1], set()).add(answer)
    assert sum(len(different) > 1 for different in answers.values()) > 0.5 * len(answers)
    assert not set(passages.NAMES) & set(facts.people())


def test_languages_are_undone_by_decoding_and_share_no_common_word_with_english():
    sentences = list(islice(languages.sentences("test"), 500))
    sentences += [facts.statement(fact, template) for fact in facts.list_facts()[::11] for template in range(5)]
    for language in languages.LANGUAGES:
        for sentence in sentences:
            assert language.decode(language.encode(sentence)) == sentence
    english = {word for sentence in sentences[:500] for word in sentence.lower().rstrip(".").split()}
    for language in languages.LANGUAGES:
        there = {word for sentence in sentences[:500] for word in language.encode(sentence).lower().rstrip(".").split()}
        assert len(there) == len(english) and not there & english


@pytest.mark.parametrize(
    "ratios, counts", [((90, 5, 5), (900, 50, 50)), ((1, 1, 1), (334, 333, 333)), ((0, 1, 3), (0, 250, 750))]
)
def test_mixtures_have_exactly_the_ratios_asked_for(ratios, counts):
    drawn = Counter(record["language"] for record in languages.mixture(ratios, 1000))
    assert tuple(drawn[name] for name in ("English", "Velish", "Oskan")) == counts
    with pytest.raises(ValueError, match="ratios"):
        languages.mixture((1, 2), 10)
