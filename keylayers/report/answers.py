"""What a run found, in sentences: the answer first, then what each comparison shows, then what it does not show."""

from keylayers.report.arms import Arm, Tuning
from keylayers.report.choice import Choice
from keylayers.report.collect import Collected
from keylayers.report.heads import Answer, Tile
from keylayers.report.vision import answer_of
from keylayers.report.words import (
    HYPHEN,
    and_list,
    figures,
    loss,
    number,
    plural,
    policy_words,
    share,
    signed,
    whole,
    with_half_width,
)
from keylayers.scores import Agreement, LayerScores
from keylayers.scores.rank_agreement import p_text


def answer(collected: Collected, choice: Choice | None, pairs: tuple[Agreement, ...]) -> Answer:
    """The head of a report."""
    if collected.tuned is not None and collected.tuned.tuning is not None and choice is not None:
        return _of_tuning(collected.tuned.tuning, choice)
    if collected.runs[0].command == "compare" and pairs:
        return _of_agreement(pairs)
    if choice is not None and choice.ranking is not None:
        return _of_scores(choice, choice.ranking.scores)
    first = collected.runs[0]
    missing = "The results of this run cannot be read." if first.finished else "Nothing is finished in this run yet."
    return answer_of(first) or Answer(missing, (), ())


def verdict(first: Arm, other: Arm) -> str:
    """How another arm stands beside the first over the same seeds, in words."""
    difference = first.minus(other)
    if difference is None:
        gap = other.mean - first.mean
        way = "worse" if gap > 0 else "better"
        return f"{way} by {loss(abs(gap))}, without an interval ({_why_no_interval(first, other)})"
    middle, half = difference.interval.estimate, (difference.interval.high - difference.interval.low) / 2
    if 0 in difference.interval:
        return f"no difference shown ({with_half_width(-middle, half, sign=True)})"
    return f"{'worse' if middle < 0 else 'better'} by {with_half_width(abs(middle), half)}"


def _of_tuning(tuning: Tuning, choice: Choice) -> Answer:
    first, others = tuning.arms[0], sorted(tuning.arms[1:], key=lambda arm: not arm.is_random)
    interval = first.interval
    half = None if interval is None else (interval.high - interval.low) / 2
    start = "" if tuning.base_loss is None else f"from {figures(tuning.base_loss)} "
    only = "" if first.policy == "all" else "only "
    sentence = (
        f"Training {only}{policy_words(first.policy)} brings the held{HYPHEN}out loss {start}to {figures(first.mean)} "
    )
    random = [arm for arm in others if arm.is_random]  # the one that is hardest to beat is what to be judged by
    control = min(random, key=lambda arm: arm.mean) if random else others[0] if others else None
    sentence += f"nats per token{_beside(first, control) if control else ''}."
    points = tuple(f"{_named(arm)}: {with_half_width(arm.mean, _half(arm))}, {verdict(first, arm)}." for arm in others)
    total = len(choice.ranking.scores.layers) if choice.ranking else None
    tiles = [
        Tile("Held-out loss", loss(first.mean), _beside_loss(tuning, half, len(first.losses))),
        Tile("Layers trained", whole(first.layers), f"of {whole(total)}" if total else first.policy),
        Tile("Their parameters", share(first.size_share), "of those in the scored layers"),
    ]
    if control is not None:
        paired = first.minus(control)
        estimate = paired.interval.estimate if paired else first.mean - control.mean
        spread = (paired.interval.high - paired.interval.low) / 2 if paired else None
        words = "random layers" if control.is_random else policy_words(control.policy)
        why = _why_no_interval(first, control)
        beside = f"no interval: {why}" if spread is None else f"± {spread:.4f}, 95 % interval"
        tiles.append(Tile(f"Loss minus that of {words}", signed(estimate), beside))
    return Answer(sentence, points, tuple(tiles))


def _beside(first: Arm, control: Arm) -> str:
    """The end of the head's sentence: what the control reaches, and whether that is another thing."""
    difference, reached, words = first.minus(control), figures(control.mean), policy_words(control.policy)
    if difference is None:
        return f"; {words} reach {reached} ({_why_no_interval(first, control)}, so no interval)"
    if 0 in difference.interval:
        return f"; no difference is shown to {words}, which reach {reached}"
    return f"; {words} reach {'only ' if control.mean > first.mean else ''}{reached}"


def _named(arm: Arm) -> str:
    words = policy_words(arm.policy)
    return words[0].upper() + words[1:] + ("" if words == arm.policy else f" ({arm.policy})")


def _of_scores(choice: Choice, scores: LayerScores) -> Answer:
    kept, total = len(choice.names), len(scores.layers)
    chosen = [index for index, layer in enumerate(scores.layers) if layer.name in set(choice.names)]
    size = sum(scores.layers[index].size for index in chosen) / sum(layer.size for layer in scores.layers)
    drop = _drop(scores)
    sentence = (
        f"By {scores.criterion}, the {kept} most critical of {total} layers (30\u00a0%) hold {share(size)} of the "
    )
    tiles = [
        Tile("Most critical layers", whole(kept), f"of {whole(total)}: top 30\u00a0%"),
        Tile("Their parameters", share(size), "of those in the scored layers"),
    ]
    if drop is None:
        sentence += "scored parameters."
    else:
        part = float(scores.values[chosen].sum()) / drop
        sentence += f"scored parameters and bring {share(part)} of what tuning lowers the loss by."
        tiles.append(Tile("Their part of the loss drop", share(part), f"of {loss(drop)} nats per token"))
    points = []
    if choice.tiers is not None:
        points.append(f"By their 95 % intervals, {choice.tiers}.")
        tiles.append(
            Tile(
                "Certain to be among them", whole(choice.tiers.total("in")), _undecided(choice.tiers.total("undecided"))
            )
        )
    best = [f"{scores.layers[i].name} ({number(scores.values[i])})" for i in scores.order()[:3]]
    points.append(f"The most critical: {and_list(best)}.")
    return Answer(sentence, tuple(points), tuple(tiles))


def _of_agreement(pairs: tuple[Agreement, ...]) -> Answer:
    one = pairs[0].of_acted
    if len(pairs) == 1:
        pair = pairs[0]
        sentence = f"{pair.labels[0]} and {pair.labels[1]} share {one.shared} of the {one.size} layers in their "
        sentence += f"{one.side} sets: a Jaccard index of {one.jaccard:.3f}, where chance gives {one.expected:.3f}."
        kinds = f"; beside sets with the same counts per kind, p = {p_text(one.p_value('kind'))}"
        shown = "More" if one.p_value() < 0.05 else "Not shown to be more"
        point = f"{shown} than random sets share: p = {p_text(one.p_value())}{kinds}."
    else:
        low, high = (f(pair.of_acted.jaccard for pair in pairs) for f in (min, max))
        sentence = f"The {one.side} sets of {one.size} layers overlap with Jaccard indices of {low:.3f} to {high:.3f}, "
        sentence += f"where chance gives {one.expected:.3f}."
        beyond = sum(pair.of_acted.p_value() < 0.05 for pair in pairs)
        point = (
            f"{beyond} of {len(pairs)} pairs share more than random sets would (p < 0.05 before adjusting for their "
        )
        point += "number; the table has the adjusted values)."
    rho, mean = [pair.spearman.value for pair in pairs], ", mean" if len(pairs) > 1 else ""
    tiles = (
        Tile(
            f"Jaccard index{mean}",
            f"{_mean([pair.of_acted.jaccard for pair in pairs]):.3f}",
            f"chance {one.expected:.3f}",
        ),
        Tile(f"Kuncheva index{mean}", f"{_mean([pair.of_acted.kuncheva for pair in pairs]):.3f}", "1 equal, 0 chance"),
        Tile(f"Spearman{mean}", number(_mean(rho), 3), f"0 by chance, ± {pairs[0].spearman.null_sd:.3f}"),
    )
    return Answer(sentence, (point,), tiles)


def _drop(scores: LayerScores) -> float | None:
    """The real loss drop, where the scores are shares of it."""
    noted = scores.provenance.settings
    before, after = noted.get("loss_base"), noted.get("loss_tuned")
    if not isinstance(before, float) or not isinstance(after, float) or "completeness_error" not in noted:
        return None
    return before - after if before > after else None


def _half(arm: Arm) -> float | None:
    return None if arm.interval is None else (arm.interval.high - arm.interval.low) / 2


def _beside_loss(tuning: Tuning, half: float | None, seeds: int) -> str:
    before = "" if tuning.base_loss is None else f"; before {loss(tuning.base_loss)}"
    return ("one seed" if half is None else f"± {half:.4f} over {seeds} seeds") + before


def _why_no_interval(first: Arm, other: Arm) -> str:
    if len(first.losses) != len(other.losses):
        return f"{len(first.losses)} and {len(other.losses)} seeds are finished"
    return "one seed"


def _undecided(count: int) -> str:
    return f"{plural(count, 'layer')} undecided"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
