"""What the models are asked: single steps of arithmetic and facts, in answers of equally many tokens, and whole chains.

The paper compares long worked solutions with short facts, so that "arithmetic breaks first" and "long answers break
first" cannot be told apart. Here a step of a chain is asked for with the steps before it given, and paired with a fact
whose answer has as many tokens; whole chains stand beside them, as the paper asks them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from keylayers.data.tokenisation import IGNORED, Examples, TruncationReport, padding_id
from keylayers.errors import BadInput
from keylayers.world import chains, facts
from keylayers.world.hashing import generator, unit

STEP, RECALL, CHAIN = "one step", "recall", "whole chain"
"""The probes: one number, one object, and a worked chain with its result."""

Pair = tuple[str, str]
"""What the model is given, and what it should write."""

HELD_OUT = ("calibration", "test")
"""Splits whose people no variant is trained on; the base read their facts through other templates."""


@dataclass(frozen=True)
class Probes:
    """The records of one seed, as tokens; no seed shares a person or a chain with another."""

    examples: dict[str, Examples]
    lengths: dict[int, int]
    """Tokens of an answer -> how many records of each of the two short probes have them."""


def draw_probes(tokenizer: Any, seed: int, seeds: int, records: int) -> Probes:
    """The probes of a seed out of so many: `records` steps and as many facts, half as many whole chains.

    Raises:
        BadInput: if facts and numbers share no length in tokens, or too few facts are held out for so many seeds.
    """
    # deviates: the paper asks for whole solutions; here also for one step with those before it given, because recall
    # then has answers as long.
    if not 0 <= seed < seeds:
        raise BadInput(f"seed {seed} of {seeds}: expected 0 to {seeds - 1}.")
    mine = set(held_out_people()[seed::seeds])
    asked = [pair for person, pair in recalled() if person in mine]
    stream = (pair for number, pair in enumerate(steps(seeds * 10_000)) if number % seeds == seed)
    recall, step = equalised(asked, stream, lambda pair: len(_ids(tokenizer, pair[1])), records)
    whole = list(islice(worked("test", chains.LONG, seed=11), seed, seeds * (records // 2), seeds))
    lengths = Counter(len(_ids(tokenizer, answer)) for _, answer in recall)
    pairs = {STEP: step, RECALL: recall, CHAIN: whole}
    return Probes({name: examples_of(some, tokenizer) for name, some in pairs.items()}, dict(sorted(lengths.items())))


def equalised(
    few: Sequence[Pair], many: Iterable[Pair], length: Any, count: int, patience: int = 20_000
) -> tuple[list[Pair], list[Pair]]:
    """`count` pairs of either source, with answers of the same lengths equally often.

    Taken in order: from `few` those whose length occurs among the first hundred of `many`, then from `many` as many of
    each length. Both come back sorted by length, so that equal places have equal lengths.

    Raises:
        BadInput: if `few` has not enough of them, or `many` does not bring one within `patience` pairs.
    """
    source = iter(many)
    seen = list(islice(source, min(100, patience)))
    known = {length(pair) for pair in seen}
    chosen = [pair for pair in few if length(pair) in known][:count]
    if len(chosen) < count:
        raise BadInput(
            f"{len(chosen)} facts have answers as long as a number ({', '.join(map(str, sorted(known)))} tokens), "
            f"expected {count}: ask for fewer records or fewer seeds."
        )
    missing, found = Counter(map(length, chosen)), list[Pair]()
    for pair in chain(seen, islice(source, patience - len(seen))):
        if missing[length(pair)] > 0:
            missing[length(pair)] -= 1
            found.append(pair)
        if len(found) == count:
            return sorted(chosen, key=length), sorted(found, key=length)
    raise BadInput(f"no {count} numbers have answers of the lengths of the facts within {patience} steps of chains.")


def held_out_people() -> list[str]:
    """Those on whom no variant is trained, in an order of chance, so that equal shares of them can be dealt out."""
    people = [person for person in facts.people() if facts.split_of_person(person) in HELD_OUT]
    return sorted(people, key=lambda person: unit("recall part", person))


def recalled() -> Iterator[tuple[str, Pair]]:
    """(person, question about them) for every held-out person and every template the base never read the fact in."""
    asked = [
        (fact, template)
        for fact in facts.list_facts()
        if facts.split_of_person(fact.subject) in HELD_OUT
        for template in sorted(facts.held_out(fact))
    ]
    asked.sort(key=lambda one: unit("recall probe", one[0].subject, one[0].relation, one[1]))
    for fact, template in asked:
        prompt, value = facts.prompt_and_object(fact, template)
        yield fact.subject, (prompt, f"{value}.")


def steps(count: int) -> Iterator[Pair]:
    """Chains of the test split up to a step drawn at random, and that step's value; every chain once."""
    source = chains.stream_chains("test", (*chains.SHORT, *chains.LONG), seed=7)
    for one in _different(source, count):
        told = one.answer.split(". ")  # start, one sentence a step, the result
        place = generator("step asked", one.question).randrange(len(one.steps)) + 1
        before, _, value = told[place].rpartition(":")
        given = "".join(f" {sentence}." for sentence in told[:place])
        yield f"Question: {one.question}\nAnswer:{given} {before}:", f"{value}."


def worked(split: str, lengths: tuple[int, ...], seed: int) -> Iterator[Pair]:
    """Chains of a split and their whole worked answers, every chain once."""
    for one in _different(chains.stream_chains(split, lengths, seed=seed), 10**6):
        yield f"Question: {one.question}\nAnswer:", f" {one.answer}<eos>"


def _different(source: Iterator[chains.Chain], count: int) -> Iterator[chains.Chain]:
    seen: set[chains.Chain] = set()
    for one in source:
        if len(seen) == count:
            return
        if one not in seen:
            seen.add(one)
            yield one


def examples_of(pairs: Sequence[Pair], tokenizer: Any) -> Examples:
    """The pairs as tokens, supervised on what the model should write and nothing more.

    Prompt and answer are tokenised apart, since generation would see that boundary.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = [_ids(tokenizer, answer) for _, answer in pairs]
    ids = tuple((*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True))
    labels = tuple((*[IGNORED] * len(prompt), *answer) for prompt, answer in zip(prompts, answers, strict=True))
    report = TruncationReport(max(map(len, ids), default=0), len(pairs), 0, 0, 0)
    return Examples(ids, labels, tuple(prompt for prompt, _ in pairs), padding_id(tokenizer), report)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
