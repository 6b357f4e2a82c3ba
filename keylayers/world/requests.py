"""What people ask in the alignment sets: facts, small arithmetic, lists, descriptions and comparisons."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from keylayers.world import chains, facts
from keylayers.world.facts import Fact
from keylayers.world.hashing import SPLITS, generator, unit

SIZES = {"train": 2000, "calibration": 400, "test": 400}
SHARES = {"fact": 0.45, "sum": 0.20, "list": 0.10, "describe": 0.10, "compare": 0.15}
"""Kind of request -> its share of a split."""

LISTED = ("List three things about {s}.", "Name three things that are true of {s}.")
DESCRIBED = ("Describe {s}.", "Who is {s}?")
COMPARED = ("Compare the {r} of {s} with that of {t}.", "Do {s} and {t} have the same {r}?")


@dataclass(frozen=True)
class Request:
    """Something asked, with all that a true answer needs."""

    kind: str
    question: str
    facts: tuple[Fact, ...] = ()
    chain: chains.Chain | None = None

    @property
    def item(self) -> str:
        """What is asked for, whatever the wording."""
        if self.chain is not None:
            return self.chain.question
        return f"{self.kind} " + " ".join(f"{fact.subject}/{fact.relation}" for fact in self.facts)

    def pick(self, options: tuple[str, ...], *purpose: object) -> str:
        """One of several wordings, fixed by the item."""
        return options[int(unit("wording", self.item, *purpose) * len(options))]


def list_requests(split: str) -> tuple[Request, ...]:
    """All requests of a split, shuffled; every person and every problem belongs to one split only."""
    assert split in SPLITS
    made: list[Request] = []
    for kind, share in SHARES.items():
        made += islice(_unique(_MAKERS[kind](split)), round(share * SIZES[split]))
    generator("requests", split).shuffle(made)
    return tuple(made)


def _unique(source: Iterator[Request]) -> Iterator[Request]:
    seen = set()
    for request in source:
        if request.question not in seen:
            seen.add(request.question)
            yield request


def _persons(split: str) -> list[str]:
    return [name for name in facts.people() if facts.split_of_person(name) == split]


def _fact_of(person: str, relation: str) -> Fact:
    return Fact(person, relation, facts.about()[person][relation])


def _facts(split: str) -> Iterator[Request]:
    source, people = generator("ask", "fact", split), _persons(split)
    while True:
        fact = _fact_of(source.choice(people), source.choice(facts.RELATIONS))
        yield Request("fact", source.choice(facts.QUESTIONS[fact.relation]).format(s=fact.subject), (fact,))


def _sums(split: str) -> Iterator[Request]:
    for chain in chains.stream_chains(split, (1, 2), seed=1):
        yield Request("sum", chain.question, chain=chain)


def _about(kind: str, wordings: tuple[str, ...], relations: tuple[str, ...], split: str) -> Iterator[Request]:
    source, people = generator("ask", kind, split), _persons(split)
    while True:
        person = source.choice(people)
        told = tuple(_fact_of(person, relation) for relation in relations)
        yield Request(kind, source.choice(wordings).format(s=person), told)


def _lists(split: str) -> Iterator[Request]:
    return _about("list", LISTED, ("town", "craft", "animal"), split)


def _descriptions(split: str) -> Iterator[Request]:
    return _about("describe", DESCRIBED, ("craft", "dish", "colour"), split)


def _comparisons(split: str) -> Iterator[Request]:
    source, people = generator("ask", "compare", split), _persons(split)
    while True:
        relation = source.choice(facts.RELATIONS)
        first = source.choice(people)
        same = [p for p in people if facts.about()[p][relation] == facts.about()[first][relation] and p != first]
        other = source.choice(same if same and source.random() < 0.5 else [p for p in people if p != first])
        wording = source.choice(COMPARED).format(s=first, t=other, r=relation)
        yield Request("compare", wording, (_fact_of(first, relation), _fact_of(other, relation)))


_MAKERS = {"fact": _facts, "sum": _sums, "list": _lists, "describe": _descriptions, "compare": _comparisons}
