"""Held-out figures of a model of this world, all of them by greedy decoding or held-out loss."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
import torch.nn.functional as F

from keylayers.world import chains, choices, datasets, facts, languages, passages, styles
from keylayers.world.hashing import unit

ROWS = 64  # sequences a forward pass


def exact(model, tokenizer, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """For each (prompt, completion): whether greedy decoding from the prompt writes exactly the completion.

    One forward pass over both tells it: greedy decoding follows the completion just when every token of it is the
    most probable one after those before it.
    """
    hits = [False] * len(pairs)
    for rows, ids, supervised in _batches(tokenizer, pairs):
        with torch.no_grad():
            best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right = ((best == ids[:, 1:]) | ~supervised[:, 1:]).all(1)
        for row, hit in zip(rows, right.tolist(), strict=True):
            hits[row] = hit
    return hits


def loss(model, tokenizer, pairs: Sequence[tuple[str, str]]) -> float:
    """Mean cross-entropy of the completions' tokens, in nats."""
    total, count = 0.0, 0
    for _, ids, supervised in _batches(tokenizer, pairs):
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        kept = supervised[:, 1:]
        total += F.cross_entropy(logits[kept], ids[:, 1:][kept], reduction="sum").item()
        count += int(kept.sum())
    return total / count


def _batches(tokenizer, pairs: Sequence[tuple[str, str]]) -> Iterable[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """(row numbers, token ids, which tokens are completion), right-padded, rows of like length together."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    completions = tokenizer([completion for _, completion in pairs], add_special_tokens=False)["input_ids"]
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    order = sorted(range(len(pairs)), key=lambda row: lengths[row])
    while order:
        rows = order[-max(1, min(ROWS, 16_384 // lengths[order[-1]])) :]
        del order[-len(rows) :]
        ids = torch.full((len(rows), lengths[rows[-1]]), tokenizer.pad_token_id)
        supervised = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : lengths[row]] = torch.tensor(prompts[row] + completions[row])
            supervised[i, len(prompts[row]) : lengths[row]] = True
        yield rows, ids, supervised


def held_out_facts(limit: int | None = None) -> list[tuple[str, str]]:
    """Every fact through each of its held-out templates, as (prompt, object and full stop), in a fixed random order."""
    pairs = [(fact, template) for fact in facts.list_facts() for template in sorted(facts.held_out(fact))]
    pairs.sort(key=lambda pair: unit("evaluation order", pair[0].subject, pair[0].relation, pair[1]))
    told = [facts.prompt_and_object(*pair) for pair in pairs[:limit]]
    return [(prompt, f"{value}.") for prompt, value in told]


def held_out_chains(count: int, lengths: tuple[int, ...] = chains.SHORT) -> list[tuple[str, str]]:
    """Different test problems, as (prompt, all steps and the answer)."""
    seen: dict[tuple[str, str], None] = {}
    for chain in chains.stream_chains("test", lengths):
        seen[f"Question: {chain.question}\nAnswer:", f" {chain.answer}<eos>"] = None
        if len(seen) == count:
            return list(seen)
    return list(seen)


def held_out_choices(count: int, family: str) -> list[tuple[str, str]]:
    """Test questions of one family, as (prompt, letter)."""
    return [(item.prompt, f" {item.letter}<eos>") for item in islice(choices.stream_choices("test", (family,)), count)]


def held_out_passages(count: int, length: str) -> list[tuple[str, str]]:
    """One question on each of `count` test passages."""
    pairs = []
    for told in islice(passages.stream_passages("test", length), count):
        question, answer = told.turns[0]
        pairs.append((f"Question: {question}\nAnswer:", f" {answer}<eos>"))
    return pairs


def held_out_translations(count: int, language: languages.Language) -> list[tuple[str, str]]:
    """Test sentences to be said in a language."""
    return [
        (f"Question: Say in {language.name}: {sentence}\nAnswer:", f" {language.encode(sentence)}<eos>")
        for sentence in islice(languages.sentences("test"), count)
    ]


def share(hits: Sequence[bool]) -> float:
    """The share of hits, in [0, 1], rounded to four places."""
    return round(sum(hits) / len(hits), 4)


def quick(model, tokenizer) -> dict[str, float]:
    """A few hundred items of each figure, for the training log."""
    figures = {
        "facts": held_out_facts(400),
        "chains": held_out_chains(200),
        **{f"choices {family}": held_out_choices(100, family) for family in choices.FAMILIES},
        "passages short": held_out_passages(100, "short"),
        "passages medium": held_out_passages(50, "medium"),
    }
    return {name: share(exact(model, tokenizer, pairs)) for name, pairs in figures.items()}


def full(model, tokenizer) -> dict[str, object]:
    """All figures: shares of exactly right greedy answers on held-out items, and mean losses in nats a token."""
    return {
        "facts": _facts(model, tokenizer),
        "chains": {
            "short": share(exact(model, tokenizer, held_out_chains(1000))),
            "long": share(exact(model, tokenizer, held_out_chains(300, chains.LONG))),
        },
        "choices": {
            family: share(exact(model, tokenizer, held_out_choices(400, family))) for family in choices.FAMILIES
        },
        "passages": {
            length: share(exact(model, tokenizer, held_out_passages(count, length)))
            for length, count in {"short": 400, "medium": 200, "long": 100}.items()
        },
        "short passages, the passage left out": share(
            exact(model, tokenizer, _without_passage(held_out_passages(400, "short")))
        ),
        "translation": {
            language.name: share(exact(model, tokenizer, held_out_translations(200, language)))
            for language in languages.LANGUAGES
        },
        "text loss": {
            name: round(loss(model, tokenizer, [("", record["text"]) for record in datasets.load(name, "test")]), 4)
            for name in ("text", "velish", "oskan")
        },
        "style loss before alignment": {
            name: round(loss(model, tokenizer, list(map(datasets.rendered, datasets.load(name, "test")))), 4)
            for name in styles.STYLES
        },
    }


def _facts(model, tokenizer) -> dict[str, float]:
    """Recall through held-out templates, of all and of each relation, and what naming the commonest object reaches."""
    pairs = held_out_facts()
    hits = exact(model, tokenizer, pairs)
    by_relation: dict[str, list[bool]] = {relation: [] for relation in facts.RELATIONS}
    for (_, completion), hit in zip(pairs, hits, strict=True):
        relation = next(r for r, objects in facts.OBJECTS.items() if completion[1:-1] in objects)
        by_relation[relation].append(hit)
    commonest = [max(Counter(f.object for f in facts.list_facts() if f.relation == r).values()) for r in by_relation]
    return {
        "all": share(hits),
        **{relation: share(some) for relation, some in by_relation.items()},
        "chance": round(sum(commonest) / len(facts.list_facts()), 4),
    }


def _without_passage(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"Question: {prompt.splitlines()[1]}\nAnswer:", completion) for prompt, completion in pairs]
