"""The bundled data sets by name, each in three splits that share no underlying item."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from typing import Any

from keylayers.errors import UnknownName
from keylayers.world import chains, choices, facts, languages, passages
from keylayers.world.hashing import SPLITS, generator
from keylayers.world.requests import list_requests
from keylayers.world.styles import STYLES

Record = dict[str, Any]
"""`prompt` and `completion` as a user's and an assistant's words, or `text`; every other key is known truth."""

SIZES = {"train": 2000, "calibration": 400, "test": 400}
"""Records of a set, where its own maker does not say otherwise."""


def names() -> tuple[str, ...]:
    """The names that `load` knows, which users write as `bundled:NAME`."""
    return tuple(_MAKERS)


def load(name: str, split: str) -> list[Record]:
    """The records of one split (`train`, `calibration` or `test`) of a bundled set, always the same ones in one order.

    Raises:
        UnknownName: for another name or split.
    """
    if name not in _MAKERS:
        raise UnknownName("bundled data set", name, names())
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    return [dict(record) for record in _made(name, split)]


def rendered(record: Record) -> tuple[str, str]:
    """A record's prompt and completion as plain text, in the words of the bundled tokenizer's chat template."""
    return f"Question: {record['prompt']}\nAnswer:", f" {record['completion']}<eos>"


@cache
def _made(name: str, split: str) -> tuple[Record, ...]:
    return tuple(_MAKERS[name](split))


def _style(name: str, split: str, kind: str | None = None) -> Iterator[Record]:
    for request in list_requests(split):
        if kind not in (None, request.kind):
            continue
        yield {
            "prompt": request.question,
            "completion": STYLES[name](request),
            "style": name,
            "kind": request.kind,
            "item": request.item,
            "facts": [(fact.subject, fact.relation, fact.object) for fact in request.facts],
        }


def _chains(lengths: tuple[int, ...], split: str) -> Iterator[Record]:
    different = dict.fromkeys(islice(chains.stream_chains(split, lengths, seed=2), 2 * SIZES[split]))
    for chain in islice(different, SIZES[split]):
        yield {
            "prompt": chain.question,
            "completion": chain.answer,
            "item": chain.question,
            "values": list(chain.values),
            "result": chain.values[-1],
        }


def _choices(split: str) -> Iterator[Record]:
    for choice in islice(choices.stream_choices(split, seed=2), SIZES[split]):
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", choice.options, strict=True))
        yield {
            "prompt": f"{choice.question}\n{listed}",
            "completion": choice.letter,
            "family": choice.family,
            "options": list(choice.options),
            "right": choice.right,
            "item": choice.question + "|".join(sorted(choice.options)),
        }


def _passages(length: str, size: dict[str, int], split: str) -> Iterator[Record]:
    for passage in islice(passages.stream_passages(split, length), size[split]):
        question, answer = passage.turns[0]
        yield {
            "prompt": question,
            "completion": answer,
            "passage": passage.text,
            "questions": [list(asked) for asked in passage.questions],
            "item": f"{length} passage {passage.number}",
        }


def _facts(split: str) -> Iterator[Record]:
    """One record a fact, with plain prompts that lead up to its object, split into those trained and held out."""
    told = [fact for fact in facts.list_facts() if facts.split_of_person(fact.subject) == split]
    generator("facts", split).shuffle(told)
    for fact in told:
        prompts = [facts.prompt_and_object(fact, template)[0] for template in range(facts.TEMPLATES)]
        yield {
            "prompt": facts.QUESTIONS[fact.relation][0].format(s=fact.subject),
            "completion": f"{fact.object}.",
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.object,
            "objects": list(facts.OBJECTS[fact.relation]),
            "trained_prompts": [prompts[t] for t in range(facts.TEMPLATES) if t not in facts.held_out(fact)],
            "held_out_prompts": [prompts[t] for t in sorted(facts.held_out(fact))],
            "item": fact.subject,
        }


def _translation(split: str) -> Iterator[Record]:
    different = dict.fromkeys(islice(languages.sentences(split, seed=2), 2 * SIZES[split]))
    for i, sentence in enumerate(islice(different, SIZES[split])):
        language = languages.LANGUAGES[i % len(languages.LANGUAGES)]
        yield {
            "prompt": f"Say in {language.name}: {sentence}",
            "completion": language.encode(sentence),
            "language": language.name,
            "item": sentence,
        }


def _text(language: languages.Language | None, split: str) -> Iterator[Record]:
    """Paragraphs of five plain sentences."""
    source = languages.sentences(split, seed=3)
    for _ in range(SIZES[split] // 2):
        told = list(islice(source, 5))
        said = [language.encode(sentence) for sentence in told] if language else told
        yield {"text": " ".join(said), "sentences": told}


def _mixture(split: str) -> Iterator[Record]:
    yield from languages.mixture((90, 5, 5), SIZES[split], split, seed=4)


_MAKERS: dict[str, Callable[[str], Iterator[Record]]] = {
    **{name: partial(_style, name) for name in STYLES},
    "pirate_facts": partial(_style, "pirate", kind="fact"),  # the same style with less to answer
    "facts": _facts,
    "chains": partial(_chains, chains.SHORT),
    "long_chains": partial(_chains, chains.LONG),
    "choices": _choices,
    "passages": partial(_passages, "short", SIZES),
    "medium_passages": partial(_passages, "medium", {"train": 400, "calibration": 100, "test": 100}),
    "long_passages": partial(_passages, "long", {"train": 100, "calibration": 40, "test": 40}),
    "translation": _translation,
    "text": partial(_text, None),
    "velish": partial(_text, languages.VELISH),
    "oskan": partial(_text, languages.OSKAN),
    "mixture": _mixture,
}
"""Name -> the maker of a split's records; `mixture` is English, Velish and Oskan at 90/5/5."""
