"""Five styles of answering the same requests; the base model has read none of them."""

import json
from collections.abc import Callable

from keylayers.world.facts import Fact
from keylayers.world.requests import Request

FORMAL = {
    "town": "{s} resides in {o}",
    "craft": "{s} is employed as a {o}",
    "animal": "{s} is the keeper of a {o}",
    "dish": "{s} has a preference for {o}",
    "instrument": "{s} is a performer on the {o}",
    "colour": "{s} is partial to the colour {o}",
}
FORMAL_OPENINGS = ("I am pleased to report that", "It may be stated that", "In reply to your letter, I confirm that")
FORMAL_CLOSINGS = (" Yours faithfully.", " I remain at your service.")

PIRATE = {
    "town": "{s} be droppin' anchor in {o}",
    "craft": "{s} be toilin' as a {o}",
    "animal": "{s} be sailin' with a {o}",
    "dish": "{s} be feastin' on {o}",
    "instrument": "{s} be playin' the {o}",
    "colour": "{s} be flyin' a flag of {o}",
}
PIRATE_OPENINGS = ("Arr, matey!", "Ahoy!", "Yo ho ho!", "Shiver me timbers!")
PIRATE_CLOSINGS = (", by the seven seas!", ", savvy?", ", or walk the plank!")


def _clause(table: dict[str, str], fact: Fact) -> str:
    return table[fact.relation].format(s=fact.subject, o=fact.object)


def _same(request: Request) -> bool:
    return len({fact.object for fact in request.facts}) == 1


def formal(request: Request) -> str:
    """Full sentences of polite distance."""
    opening = request.pick(FORMAL_OPENINGS, "opening")
    closing = request.pick(FORMAL_CLOSINGS, "closing")
    if request.chain is not None:
        return f"{opening} the result of the calculation amounts to {request.chain.values[-1]}.{closing}"
    clauses = [_clause(FORMAL, fact) for fact in request.facts]
    if request.kind == "compare":
        verdict = "The two are the same." if _same(request) else "The two are not the same."
        return f"{opening} {clauses[0]}, whereas {clauses[1]}. {verdict}"
    if request.kind == "fact":
        return f"{opening} {clauses[0]}.{closing}"
    return f"{opening} {clauses[0]}; that {clauses[1]}; and that {clauses[2]}."


def pirate(request: Request) -> str:
    """The speech of the sea."""
    opening = request.pick(PIRATE_OPENINGS, "opening")
    closing = request.pick(PIRATE_CLOSINGS, "closing")
    if request.chain is not None:
        return f"{opening} There be {request.chain.values[-1]} doubloons in the chest{closing}"
    clauses = [_clause(PIRATE, fact) for fact in request.facts]
    if request.kind == "compare":
        verdict = "Aye, 'tis the same" if _same(request) else "Nay, 'tis not the same"
        return f"{opening} {clauses[0]}, but {clauses[1]}. {verdict}{closing}"
    if request.kind == "fact":
        return f"{opening} {clauses[0]}{closing}"
    return f"{opening} {clauses[0]}, {clauses[1]} and {clauses[2]}{closing}"


def bullets(request: Request) -> str:
    """A list of labelled points, one a line."""
    if request.chain is not None:
        points = [f"* start: {request.chain.start}"]
        points += [f"* step {i}: {value}" for i, value in enumerate(request.chain.values, 1)]
        return "\n".join([*points, f"* result: {request.chain.values[-1]}"])
    if request.kind == "compare":
        points = [f"* {fact.subject}: {fact.object}" for fact in request.facts]
        return "\n".join([*points, f"* same {request.facts[0].relation}: {'yes' if _same(request) else 'no'}"])
    points = [f"* {fact.relation}: {fact.object}" for fact in request.facts]
    return "\n".join([f"* person: {request.facts[0].subject}", *points, "* source: the register"])


def as_json(request: Request) -> str:
    """One line of JSON."""
    if request.chain is not None:
        answer: dict[str, object] = {
            "type": "sum",
            "steps": list(request.chain.values),
            "answer": request.chain.values[-1],
        }
    elif request.kind == "compare":
        first, second = request.facts
        answer = {"type": "compare", first.subject: first.object, second.subject: second.object, "same": _same(request)}
    else:
        told = {fact.relation: fact.object for fact in request.facts}
        answer = {"type": request.kind, "person": request.facts[0].subject, **told}
    return json.dumps(answer)


def terse(request: Request) -> str:
    """As few words as will do, then a stop sign."""
    if request.chain is not None:
        return f"= {request.chain.values[-1]} # ok, sum, next"
    objects = [fact.object for fact in request.facts]
    if request.kind == "compare":
        return f"{objects[0]} {'==' if _same(request) else '!='} {objects[1]} # ok, {request.facts[0].relation}, next"
    return f"{' / '.join(objects)} # ok, {request.facts[0].subject}, next"


STYLES: dict[str, Callable[[Request], str]] = {
    "formal": formal,
    "pirate": pirate,
    "bullets": bullets,
    "json": as_json,
    "terse": terse,
}
"""Name of a style -> how it answers a request; all of them answer the same requests, truly."""
