"""Multiple-choice questions of four families; the place of the right option is exactly balanced."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from keylayers.world import facts
from keylayers.world.hashing import generator, split_of

LETTERS = "ABCD"


@dataclass(frozen=True)
class Choice:
    """A question with four options, of which exactly one is right."""

    family: str
    question: str
    options: tuple[str, ...]
    right: int

    @property
    def prompt(self) -> str:
        """The question and its lettered options, up to the answer."""
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True))
        return f"Question: {self.question}\n{listed}\nAnswer:"

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.right]


ASKED = {
    "town": "Which town is home to {s}?",
    "craft": "Which of these does {s} work as?",
    "animal": "Which of these animals belongs to {s}?",
    "dish": "Which of these dishes would {s} choose?",
    "instrument": "Which of these instruments belongs to {s}?",
    "colour": "Which of these colours would {s} choose?",
}
GROUPS = {
    "a craft": facts.OBJECTS["craft"],
    "an animal": facts.OBJECTS["animal"],
    "a dish": facts.OBJECTS["dish"],
    "an instrument": facts.OBJECTS["instrument"],
    "a colour": facts.OBJECTS["colour"],
    "a town": facts.OBJECTS["town"],
}

Drawn = tuple[str, str, list[str], tuple[object, ...]]  # question, right option, wrong options, the underlying item


def _fact(random: random.Random) -> Drawn:
    fact = random.choice(facts.list_facts())
    wrong = random.sample([o for o in facts.OBJECTS[fact.relation] if o != fact.object], 3)
    return ASKED[fact.relation].format(s=fact.subject), fact.object, wrong, ("person", fact.subject)


def _kind(random: random.Random) -> Drawn:
    name = random.choice(tuple(GROUPS))
    right = random.choice(GROUPS[name])
    wrong = [random.choice(GROUPS[other]) for other in random.sample([g for g in GROUPS if g != name], 3)]
    return f"Which of these is {name}?", right, wrong, ("kind", right, *sorted(wrong))


def _sum(random: random.Random) -> Drawn:
    a, b = random.randint(1, 80), random.randint(1, 9)
    sign = random.choice(("add", "take")) if a >= b else "add"
    right = a + b if sign == "add" else a - b
    near = [n for n in range(max(0, right - 6), right + 7) if n != right]
    return (
        f"Start {a}, {sign} {b}. What is left?",
        str(right),
        [str(n) for n in random.sample(near, 3)],
        ("sum", a, sign, b),
    )


def _largest(random: random.Random) -> Drawn:
    numbers = random.sample(range(1, 100), 4)
    right = max(numbers)
    wrong = [str(n) for n in numbers if n != right]
    return "Which of these numbers is the largest?", str(right), wrong, ("largest", *sorted(numbers))


FAMILIES: dict[str, Callable[[random.Random], Drawn]] = {"fact": _fact, "kind": _kind, "sum": _sum, "largest": _largest}


def stream_choices(split: str, families: tuple[str, ...] = tuple(FAMILIES), *, seed: int = 0) -> Iterator[Choice]:
    """An endless stream of one split's questions, families in turn; among 4 of a family each letter is right once."""
    source = generator("choices", split, families, seed)
    places: dict[str, list[int]] = {family: [] for family in families}
    while True:
        for family in families:
            question, right, wrong, item = FAMILIES[family](source)
            while split_of(*item) != split:
                question, right, wrong, item = FAMILIES[family](source)
            if not places[family]:
                places[family] = source.sample(range(len(LETTERS)), len(LETTERS))
            place = places[family].pop()
            yield Choice(family, question, (*wrong[:place], right, *wrong[place:]), place)
