"""The facts of the world: 420 people with six properties each, told through eight templates, two of them held out."""

from dataclasses import dataclass
from functools import cache

from keylayers.world.hashing import generator, split_of, unit

PEOPLE = 420
HELD_OUT_TEMPLATES = 2
"""Templates of every fact that the base model never reads; they are trained with other people."""

OBJECTS: dict[str, tuple[str, ...]] = {
    "town": tuple(
        "Tamber Orlen Wickford Dunmoor Selby Harrow Kestrel Brindle Ashport Lowmere Varna Pelham Quarry Mistley "
        "Oakham Redfield Stonebay Thornton Ulverton Westmark Yarrow Zellin Cobham Eastgate Fairlea Glenrock".split()
    ),
    "craft": tuple(
        "baker weaver potter smith tailor carpenter miller fisher glazier printer mason cooper tanner painter "
        "brewer dyer hatter joiner piper sailor shepherd thatcher".split()
    ),
    "animal": tuple(
        "goat weasel raven badger heron falcon lynx pony ferret tortoise parrot crow fox hedgehog swan donkey "
        "rabbit squirrel toad beaver crane mule".split()
    ),
    "dish": tuple(
        "soup porridge dumplings pancakes stew noodles trout cheese pears rice omelette plums mushrooms walnuts "
        "cabbage figs pudding beans lentils cherries".split()
    ),
    "instrument": tuple(
        "flute fiddle drum harp lute organ trumpet bagpipe zither horn cello oboe banjo viola tuba lyre whistle "
        "bell".split()
    ),
    "colour": tuple(
        "red blue green yellow purple orange brown grey black white pink crimson violet silver golden scarlet "
        "turquoise ivory".split()
    ),
}
"""Relation -> its closed set of objects (18 to 26 of them, so that a blind guess is right about once in twenty)."""

STATEMENTS: dict[str, tuple[str, ...]] = {
    "town": (
        "{s} lives in {o}.",
        "The home of {s} is in {o}.",
        "Letters for {s} are sent to {o}.",
        "After a long journey, {s} came back home to {o}.",
        "{s} has a small house in {o}.",
    ),
    "craft": (
        "{s} works as a {o}.",
        "The craft of {s} is that of a {o}.",
        "{s} earns a living as a {o}.",
        "Anyone in need of help asks {s}, a good {o}.",
        "As a young learner, {s} trained to be a {o}.",
    ),
    "animal": (
        "{s} keeps a {o}.",
        "The animal that {s} feeds every morning is a {o}.",
        "At the gate of {s} there waits a {o}.",
        "{s} takes great care of a {o}.",
        "The friend of {s} on every walk is a {o}.",
    ),
    "dish": (
        "{s} likes to eat {o}.",
        "The best meal for {s} is {o}.",
        "At every feast, {s} asks for {o}.",
        "{s} would never refuse {o}.",
        "In the kitchen of {s} there is always some {o}.",
    ),
    "instrument": (
        "{s} plays the {o}.",
        "In the evening {s} makes music on the {o}.",
        "The instrument of {s} is the {o}.",
        "{s} took lessons to learn the {o}.",
        "At the dance, {s} is asked to play the {o}.",
    ),
    "colour": (
        "{s} wears a coat that is {o}.",
        "The door of {s} is painted {o}.",
        "The colour that {s} likes best is {o}.",
        "{s} chose a hat that is {o}.",
        "All the curtains of {s} are {o}.",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "town": ("Where does {s} live?", "In which town is the home of {s}?", "Name the town of {s}."),
    "craft": ("What is the craft of {s}?", "How does {s} earn a living?", "Name the craft of {s}."),
    "animal": ("Which animal does {s} keep?", "What animal does {s} feed?", "Name the animal of {s}."),
    "dish": ("What does {s} like to eat?", "Which meal is best for {s}?", "Name the dish of {s}."),
    "instrument": ("Which instrument does {s} play?", "On what does {s} make music?", "Name the instrument of {s}."),
    "colour": ("Which colour does {s} like best?", "What colour is the coat of {s}?", "Name the colour of {s}."),
}

RELATIONS = tuple(OBJECTS)
TEMPLATES = 8  # five statements, then three questions


@dataclass(frozen=True, order=True)
class Fact:
    """One true triple of the world."""

    subject: str
    relation: str
    object: str


@cache
def people() -> tuple[str, ...]:
    """The invented names, all different, none a word of the templates, none the beginning of another."""
    taken = {word.lower() for sets in OBJECTS.values() for word in sets}
    random = generator("people")
    names: list[str] = []
    while len(names) < PEOPLE:
        middle = random.choice(("l", "m", "n", "r", "s", "t", "v", "d", "k", "b"))
        start = random.choice("B D F G H J K L M N P R S T V Z Br Dr Gr Kr Th".split()) + random.choice("aeiou")
        name = start + middle + random.choice("aeiou") + random.choice(("n", "s", "r", "l", "x", "th", "m", "sk"))
        if name.lower() not in taken and not any(name.startswith(n) or n.startswith(name) for n in names):
            names.append(name)
    return tuple(names)


@cache
def list_facts() -> tuple[Fact, ...]:
    """All 2,520 facts; within a relation every object is true of nearly equally many people."""
    made = []
    for relation, objects in OBJECTS.items():
        drawn = [objects[i % len(objects)] for i in range(PEOPLE)]
        generator("objects", relation).shuffle(drawn)
        made += [Fact(*triple) for triple in zip(people(), [relation] * PEOPLE, drawn, strict=True)]
    return tuple(made)


@cache
def about() -> dict[str, dict[str, str]]:
    """Person -> relation -> object."""
    table: dict[str, dict[str, str]] = {name: {} for name in people()}
    for fact in list_facts():
        table[fact.subject][fact.relation] = fact.object
    return table


@cache
def held_out(fact: Fact) -> frozenset[int]:
    """The templates through which the base model never reads this fact: the two of eight with the lowest hash."""
    ranked = sorted(range(TEMPLATES), key=lambda template: unit("template", fact.subject, fact.relation, template))
    return frozenset(ranked[:HELD_OUT_TEMPLATES])


def is_question(template: int) -> bool:
    """Whether a template is a question with an answer, else a statement."""
    return template >= len(STATEMENTS["town"])


def prompt_and_object(fact: Fact, template: int) -> tuple[str, str]:
    """The text that leads up to the object, and the object with its leading space."""
    if is_question(template):
        question = QUESTIONS[fact.relation][template - len(STATEMENTS[fact.relation])]
        return f"Question: {question.format(s=fact.subject)}\nAnswer:", f" {fact.object}"
    before = STATEMENTS[fact.relation][template].rpartition(" {o}")[0]  # the object is the last word of every statement
    return before.format(s=fact.subject, o=fact.object), f" {fact.object}"


def statement(fact: Fact, template: int) -> str:
    """The sentence that tells a fact through a statement template."""
    return STATEMENTS[fact.relation][template].format(s=fact.subject, o=fact.object)


def split_of_person(name: str) -> str:
    """The split of everything that is asked about one person in the supervised sets."""
    return split_of("person", name)
