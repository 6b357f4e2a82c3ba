"""Plain sentences of the world, and two more languages: a word-for-word cipher and another word order."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from keylayers.world import facts
from keylayers.world.hashing import generator, split_of

ADJECTIVES = tuple("old young tall quiet clever busy kind brave proud tired happy careful".split())
ACTORS = tuple("farmer judge teacher doctor guard queen king child traveller singer clerk writer".split())
VERBS = tuple("carried found sold hid cleaned lost moved mended brought watched dropped borrowed".split())
THINGS = tuple(
    "lamp basket ladder kettle mirror rope candle bucket blanket hammer chair book key cup box wheel broom saddle "
    "bottle needle".split()
)
QUALITIES = tuple("heavy broken round wooden little dusty shiny empty narrow warm".split())
PLACES = tuple("barn market bridge cellar garden harbour tower stable library mill church forest".split())
PREPOSITIONS = ("in", "near", "behind")


@cache
def _habits(kind: str, word: str, among: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The few words that ever follow a word: the known structure of the plain sentences."""
    return tuple(generator("habit", kind, word).sample(among, count))


def draw(random: random.Random) -> str:
    """A sentence about 70,000 possible events: who, does what, to which thing, where."""
    actor = random.choice(ACTORS)
    verb = random.choice(_habits("verb", actor, VERBS, 4))
    thing = random.choice(_habits("thing", verb, THINGS, 4))
    quality = random.choice(_habits("quality", thing, QUALITIES, 3))
    place = random.choice(_habits("place", thing, PLACES, 3))
    adjective = random.choice(_habits("adjective", actor, ADJECTIVES, 4))
    return f"The {adjective} {actor} {verb} the {quality} {thing} {random.choice(PREPOSITIONS)} the {place}."


def sentences(split: str, *, seed: int = 0) -> Iterator[str]:
    """An endless stream of one split's plain sentences."""
    source = generator("sentences", split, seed)
    while True:
        sentence = draw(source)
        if split_of("sentence", sentence) == split:
            yield sentence


@dataclass(frozen=True)
class Language:
    """A language that shares the world's meaning and none of its common words."""

    name: str
    syllables: tuple[str, ...]
    reorder: Callable[[Sequence[str]], list[str]]
    restore: Callable[[Sequence[str]], list[str]]

    def __hash__(self) -> int:
        return hash(self.name)

    def encode(self, sentence: str) -> str:
        """The sentence in this language."""
        words = _lowered(sentence[:-1].split(), _lexicon())
        cipher = _cipher(self)
        return _sentence([cipher.get(word, word) for word in self.reorder(words)], sentence[-1])

    def decode(self, sentence: str) -> str:
        """The English sentence that `encode` made this from."""
        plain = {there: here for here, there in _cipher(self).items()}
        words = self.restore(_lowered(sentence[:-1].split(), plain))
        return _sentence([plain.get(word, word) for word in words], sentence[-1])


def _lowered(words: list[str], lexicon: object) -> list[str]:
    first = words[0][0].lower() + words[0][1:]
    return [first if first in lexicon else words[0], *words[1:]]  # type: ignore[operator]


def _sentence(words: list[str], end: str) -> str:
    return words[0][0].upper() + words[0][1:] + "".join(f" {word}" for word in words[1:]) + end


@cache
def _lexicon() -> tuple[str, ...]:
    """Every common word of the plain sentences and the statements; names stay as they are in all languages."""
    templates = [text for told in facts.STATEMENTS.values() for text in told]
    words = set(re.findall(r"(?<![{\w])[A-Za-z]+(?![}\w])", " ".join(templates)))
    words = {word.lower() for word in words} | {"the", *PREPOSITIONS}
    for group in (ADJECTIVES, ACTORS, VERBS, THINGS, QUALITIES, PLACES):
        words |= set(group)
    for relation, objects in facts.OBJECTS.items():
        words |= set(objects) if relation != "town" else set()
    return tuple(sorted(words))


@cache
def _cipher(language: Language) -> dict[str, str]:
    """Word -> its counterpart: one to three syllables, one to one, never an English word or a name."""
    taken = set(_lexicon()) | {name.lower() for name in (*facts.people(), *facts.OBJECTS["town"])}
    source = generator("cipher", language.name)
    table = {}
    for word in sorted(_lexicon(), key=lambda word: (word != "the", len(word), word)):  # short ones get short ones
        length = 1 if len(word) <= 3 else 2
        while True:
            other = "".join(source.choice(language.syllables) for _ in range(length))
            if other not in taken:
                break
            length = 2 if length == 1 and source.random() < 0.2 else length
        table[word] = other
        taken.add(other)
    return table


def _swapped(words: Sequence[str]) -> list[str]:
    """Neighbours change places: 1 0 3 2 4; twice gives the order back."""
    swapped = list(words)
    for i in range(0, len(swapped) - 1, 2):
        swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
    return swapped


VELISH = Language(
    "Velish",
    tuple(a + b for a in ("v", "l", "sh", "n", "m", "y") for b in ("a", "ei", "u", "o")),
    lambda words: list(words)[::-1],
    lambda words: list(words)[::-1],
)
"""Every sentence is said from its end to its beginning."""

OSKAN = Language(
    "Oskan",
    tuple(a + b for a in ("k", "t", "r", "p", "z", "d") for b in ("as", "ir", "ok", "et")),
    _swapped,
    _swapped,
)
"""Neighbouring words change places."""

LANGUAGES = (VELISH, OSKAN)


def parallel(split: str, *, seed: int = 0) -> Iterator[dict[str, str]]:
    """One split's sentences in all three languages."""
    for sentence in sentences(split, seed=seed):
        yield {"English": sentence, **{language.name: language.encode(sentence) for language in LANGUAGES}}


def mixture(ratios: Sequence[float], count: int, split: str = "train", *, seed: int = 0) -> list[dict[str, str]]:
    """`count` sentences, English / Velish / Oskan in exactly these proportions (largest remainders), shuffled."""
    if len(ratios) != 1 + len(LANGUAGES) or min(ratios) < 0 or sum(ratios) <= 0:
        raise ValueError(f"need {1 + len(LANGUAGES)} ratios >= 0 of positive sum, such as (90, 5, 5); got {ratios!r}")
    names = ("English", *(language.name for language in LANGUAGES))
    shares = [count * ratio / sum(ratios) for ratio in ratios]
    counts = [int(share) for share in shares]
    for i in sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])[: count - sum(counts)]:
        counts[i] += 1
    order = [name for name, number in zip(names, counts, strict=True) for _ in range(number)]
    generator("mixture", seed).shuffle(order)
    source = parallel(split, seed=seed)
    return [{"text": next(source)[name], "language": name} for name in order]
