"""Passages with questions that only the passage answers: who keeps what where is invented anew for each."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from keylayers.world import languages
from keylayers.world.hashing import generator, split_of

NAMES = tuple(
    "Anna Boris Clara David Emma Felix Grace Henry Irene Jonas Karen Lucas Maria Nora Oscar Paula Robert "
    "Sarah Tom Ursula Victor Wanda Xenia Yusuf Zara Alice Bruno Celia Edgar Flora Georg Helen Ivan Julia "
    "Leon Mona Nils Olga Peter Rosa Simon Tina Vera Walter Agnes Bert Cora Doris Eric Fanny Gina Hugo Ida "
    "Jack Kurt Lena Max Nina Otto Ruth".split()
)
THINGS = tuple(
    "anchor apron arrow axe badge bag ball bead belt bowl brush button cage card carpet chain clock cloak coin comb "
    "compass cork crown curtain dagger doll easel fan feather flag fork funnel glove globe hook jar jug kite lantern "
    "lens lock map mask medal mug necklace net pan pen pillow pipe plate purse quilt rake ribbon ring rug scarf "
    "shell".split()
)
ROOMS = tuple(
    "attic kitchen shed office hall chapel bakery cave school bank hotel museum theatre station prison castle".split()
)
LENGTHS = {"tiny": (1, 3), "short": (4, 4), "medium": (12, 12), "long": (60, 60)}
"""Kept things told of, fewest and most; about 25, 50, 240 and 1,550 tokens with their filler."""
FILLER = {"tiny": 0, "short": 0, "medium": 1, "long": 2}
"""Plain sentences after each told one (for 'long' one or two, by turns)."""
ASKED = {"tiny": 3, "short": 4, "medium": 8, "long": 10}
"""Questions on each passage, at most one on each thing."""


@dataclass(frozen=True)
class Passage:
    """A text, and the questions it answers."""

    number: int
    length: str
    text: str
    questions: tuple[tuple[str, str], ...]

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The passage as a conversation: the text stands before the first question."""
        (question, answer), *others = self.questions
        return (f"{self.text}\n{question}", answer), *others

    @property
    def split(self) -> str:
        """The one split this passage belongs to."""
        return split_of("passage", self.length, self.number)


def passage(number: int, length: str = "short") -> Passage:
    """The passage of this number: a fixed function of the world's seed, the number and the length."""
    source = generator("passage", length, number)
    fewest, most = LENGTHS[length]
    names = source.sample(NAMES, fewest if fewest == most else source.randint(fewest, most))
    things = source.sample(THINGS, len(names))
    told = [(name, thing, source.choice(ROOMS)) for name, thing in zip(names, things, strict=True)]
    split = split_of("passage", length, number)
    filler = languages.sentences(split, seed=number)
    lines = []
    for i, (name, thing, room) in enumerate(told):
        lines.append(f"{name} keeps the {thing} in the {room}.")
        lines += [next(filler) for _ in range(min(FILLER[length], 1 + i % 2))]
    asked = [_question(source, *one) for one in source.sample(told, min(len(told), ASKED[length]))]
    return Passage(number, length, " ".join(lines), tuple(asked))


def _question(random: random.Random, name: str, thing: str, room: str) -> tuple[str, str]:
    """A question by name, for the room or for the thing."""
    if random.random() < 0.6:
        return f"Where is the {thing} of {name}?", f"{name} keeps the {thing} in the {room}."
    return f"What does {name} keep?", f"{name} keeps the {thing}."


def stream_passages(split: str, length: str = "short", *, start: int = 0) -> Iterator[Passage]:
    """An endless stream of one split's passages, numbered from `start`."""
    number = start
    while True:
        if split_of("passage", length, number) == split:
            yield passage(number, length)
        number += 1
