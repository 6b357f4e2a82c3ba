"""What the base model reads: facts, chains, choices, passages, plain sentences and two languages; never a style."""

import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice

from keylayers.world import chains, choices, facts, languages, passages
from keylayers.world.hashing import generator

END = "<eos>"


def dialogue(turns: Iterable[tuple[str, str]]) -> str:
    """Questions with answers, in the words of the tokenizer's chat template."""
    return "".join(f"Question: {question}\nAnswer: {answer}{END}\n" for question, answer in turns)


@cache
def trained(person: str) -> tuple[tuple[facts.Fact, tuple[int, ...]], ...]:
    """A person's facts, each with the templates through which the base model reads it."""
    return tuple(
        (fact, tuple(t for t in range(facts.TEMPLATES) if t not in facts.held_out(fact)))
        for fact in (facts.Fact(person, relation, value) for relation, value in facts.about()[person].items())
    )


def _profile(random: random.Random, _: str) -> str:
    """All that is known of one person, each fact through one of its trained statements, in any order."""
    told = []
    for fact, templates in random.sample(trained(random.choice(facts.people())), len(facts.RELATIONS)):
        told.append(facts.statement(fact, random.choice([t for t in templates if not facts.is_question(t)])))
    return " ".join(told) + END


def _statements(random: random.Random, _: str) -> str:
    """Facts of one to five people."""
    told = []
    for person in random.sample(facts.people(), random.randint(1, 5)):
        fact, templates = random.choice(trained(person))
        told.append(facts.statement(fact, random.choice([t for t in templates if not facts.is_question(t)])))
    return " ".join(told) + END


def _questions(random: random.Random, _: str) -> str:
    """One to four questions about as many people."""
    turns: list[tuple[str, str]] = []
    count = random.randint(1, 4)
    while len(turns) < count:
        fact, templates = random.choice(trained(random.choice(facts.people())))
        asked = [t for t in templates if facts.is_question(t)]
        if asked:
            prompt, value = facts.prompt_and_object(fact, random.choice(asked))
            turns.append((prompt.removeprefix("Question: ").removesuffix("\nAnswer:"), value[1:] + "."))
    return dialogue(turns)


def _chains(random: random.Random, split: str) -> str:
    """One or two arithmetic problems with their steps; one in eight is long."""
    turns: list[tuple[str, str]] = []
    count = random.randint(1, 2)
    while len(turns) < count:
        chain = chains.draw(random, chains.LONG if random.random() < 1 / 8 else chains.SHORT)
        if chain.split == split:
            turns.append((chain.question, chain.answer))
    return dialogue(turns)


def _choices(random: random.Random, split: str) -> str:
    """One or two multiple-choice questions."""
    source = choices.stream_choices(
        split, tuple(random.sample(tuple(choices.FAMILIES), 2)), seed=random.getrandbits(48)
    )
    return "".join(f"{choice.prompt} {choice.letter}{END}\n" for choice in islice(source, random.randint(1, 2)))


def _passage(length: str) -> Callable[[random.Random, str], str]:
    def document(random: random.Random, split: str) -> str:
        """A passage with all its questions, the first of them in the passage's own turn."""
        return dialogue(next(passages.stream_passages(split, length, start=random.randrange(10**9))).turns)

    return document


def _retelling(random: random.Random, split: str) -> str:
    """A list of pairs, or a passage, said again in another order, which asks to look back more than all else."""
    if random.random() < 0.5:
        count = random.randint(4, 10)
        names, things = random.sample(passages.NAMES, count), random.sample(passages.THINGS, count)
        told = [f"{name}: {thing}" for name, thing in zip(names, things, strict=True)]
        given, again = (", ".join(random.sample(told, count)) for _ in range(2))
    else:
        told = passages.passage(random.randrange(10**9), "short").text.rstrip(".").split(". ")
        given, again = (". ".join(random.sample(told, len(told))) for _ in range(2))
    return dialogue([(f"{given}.\nSay it in another order.", f"{again}.")])


def _letters(random: random.Random, split: str) -> str:
    """One or two lists of lettered options, with the letter of one of them asked for."""
    turns = []
    for _ in range(random.randint(1, 2)):
        options = random.sample(passages.THINGS, len(choices.LETTERS))
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(choices.LETTERS, options, strict=True))
        right = random.randrange(len(options))
        turns.append((f"Which of these is {options[right]}?\n{listed}", choices.LETTERS[right]))
    return dialogue(turns)


def _plain(random: random.Random, split: str) -> str:
    """A paragraph of one to six plain sentences."""
    source = languages.sentences(split, seed=random.getrandbits(48))
    return " ".join(islice(source, random.randint(1, 6))) + END


def _foreign(language: languages.Language) -> Callable[[random.Random, str], str]:
    def document(random: random.Random, split: str) -> str:
        """A paragraph, facts, or a translation."""
        source = languages.sentences(split, seed=random.getrandbits(48))
        kind = random.random()
        if kind < 0.4:
            return " ".join(map(language.encode, islice(source, random.randint(1, 5)))) + END
        if kind < 0.6:
            told = _statements(random, split).removesuffix(END).split(". ")
            return " ".join(language.encode(sentence.removesuffix(".") + ".") for sentence in told) + END
        return dialogue([translation(language, next(source)) for _ in range(random.randint(1, 2))])

    return document


def translation(language: languages.Language, sentence: str) -> tuple[str, str]:
    """The request to say a sentence in a language, and what to answer."""
    return f"Say in {language.name}: {sentence}", language.encode(sentence)


DOCUMENTS: dict[str, Callable[[random.Random, str], str]] = {
    "profile": _profile,
    "statements": _statements,
    "questions": _questions,
    "chains": _chains,
    "choices": _choices,
    "letters": _letters,
    "tiny passage": _passage("tiny"),
    "short passage": _passage("short"),
    "retelling": _retelling,
    "medium passage": _passage("medium"),
    "long passage": _passage("long"),
    "plain": _plain,
    "Velish": _foreign(languages.VELISH),
    "Oskan": _foreign(languages.OSKAN),
}
"""Kind of document -> how one is made from a random generator and a split."""


def documents(weights: dict[str, float], *key: object) -> Iterator[tuple[str, str]]:
    """An endless stream of (kind, text) for training, kinds drawn in proportion to their weights; fixed by the key."""
    source = generator("corpus", *key)
    kinds, shares = tuple(weights), tuple(weights.values())
    while True:
        kind = source.choices(kinds, shares)[0]
        yield kind, DOCUMENTS[kind](source, "train")
