"""Arithmetic chains with written steps: 'Start 7. Add 5: 12. Take 3: 9. Answer 9.'"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from keylayers.world.hashing import generator, split_of

LARGEST = 99  # every value on the way is in 0..99
SHORT, LONG = (2, 3), (4, 5, 6)  # steps


@dataclass(frozen=True)
class Chain:
    """A start and the operations that follow, each 'add' or 'take' with 1..9, or 'double'."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The value after each step, in 0..99."""
        value, seen = self.start, []
        for operation, operand in self.steps:
            value = value + operand if operation == "add" else value - operand if operation == "take" else 2 * value
            seen.append(value)
        return tuple(seen)

    @property
    def question(self) -> str:
        """The chain as a request."""
        return f"Start {self.start}, " + ", ".join(_words(step) for step in self.steps) + "."

    @property
    def answer(self) -> str:
        """Every step with its value, then the result."""
        told = [f"{_words(step).capitalize()}: {value}." for step, value in zip(self.steps, self.values, strict=True)]
        return " ".join([f"Start {self.start}.", *told, f"Answer {self.values[-1]}."])

    @property
    def split(self) -> str:
        """The one split this problem belongs to."""
        return split_of("chain", self.start, *self.steps)


def _words(step: tuple[str, int]) -> str:
    operation, operand = step
    return operation if operation == "double" else f"{operation} {operand}"


def draw(random: random.Random, lengths: tuple[int, ...] = SHORT) -> Chain:
    """A random chain; each operation is drawn among those that keep the value in 0..99."""
    start = value = random.randint(1, 50)
    steps = []
    for _ in range(random.choice(lengths)):
        operation = random.choice(("add", "add", "take", "take", "double"))
        operand = 0 if operation == "double" else random.randint(1, 9)
        if (operation == "double" and 2 * value > LARGEST) or (operation == "add" and value + operand > LARGEST):
            operation, operand = "take", random.randint(1, 9)
        elif operation == "take" and value < operand:
            operation = "add"
        value = Chain(value, ((operation, operand),)).values[0]
        steps.append((operation, operand))
    return Chain(start, tuple(steps))


def stream_chains(split: str, lengths: tuple[int, ...] = SHORT, *, seed: int = 0) -> Iterator[Chain]:
    """An endless stream of one split's chains; the same problem may come again."""
    source = generator("chains", split, lengths, seed)
    while True:
        chain = draw(source, lengths)
        if chain.split == split:
            yield chain
