"""From scores (or plain layers) to a Selection, by a policy text; the controls of every study are policies too."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int

from keylayers.axes import LayerMask
from keylayers.errors import BadSelection
from keylayers.layers.layer import Layer
from keylayers.scores.checks import checked_layers, in_blocks, ranges
from keylayers.scores.groups import kinds_first
from keylayers.scores.policy_text import PolicySpec, parse, share
from keylayers.scores.random_draws import draw_budget, draw_count, draw_kinds, draw_params, fill
from keylayers.scores.scores import LayerScores
from keylayers.scores.selection import Selection
from keylayers.scores.ties import ranked, split_ties

Choice = tuple[LayerMask, dict[str, Any]]
"""The mask and what was measured while choosing."""


def select(
    source: LayerScores | Sequence[Layer],
    policy: str | PolicySpec,
    *,
    allow_empty: bool = False,
    allow_total: bool = False,
) -> Selection:
    """The layers that a policy chooses: `top:30%`, `random:30%:seed=3:match=params`, `not:bottom:25%`, ...

    Shares become counts by Python's round(), at least 1. Which of several layers of the same score is taken is drawn,
    by a seed that the scores fix; `caveats` says where that decided. Policies that need no scores (first, last, all,
    random without match, blocks, ends) take plain layers too.

    Raises:
        UnknownName: for an unknown policy or option. BadSelection: for bad syntax, more layers than there are, lack of
            scores or of magnitudes, scores that are all equal, or an empty or total choice that was not asked for.
    """
    spec = parse(policy) if isinstance(policy, str) else policy
    scores = source if isinstance(source, LayerScores) else None
    layers = scores.layers if scores is not None else checked_layers(source, BadSelection)  # type: ignore[arg-type]
    _check_needs(spec, scores)
    if scores is not None and spec.name in WITH_SCORES:
        mask, measured = WITH_SCORES[spec.name](scores, spec)
        _check_ranks(scores, spec, mask)
        kept = ~mask if spec.negated else mask
        if spec.name != "random" and spec.needs == "order" and (ties := split_ties(scores.values, kept)):
            measured["ties"] = asdict(ties)
    else:
        mask, measured = WITHOUT_SCORES[spec.name](layers, spec)
    provenance: dict[str, Any] = {"measured": measured} if measured else {}
    if scores is not None:
        origin = {"criterion": scores.criterion, "granularity": scores.granularity, "sha256": scores.sha256}
        provenance = {"scores": origin, "model": scores.provenance.model} | provenance
    return Selection(
        layers,
        ~mask if spec.negated else mask,
        str(spec),
        provenance,
        allow_empty=allow_empty,
        allow_total=allow_total or (spec.name == "all" and not spec.negated),
    )


def _check_needs(spec: PolicySpec, scores: LayerScores | None) -> None:
    if scores is None and spec.needs != "layers":
        raise BadSelection(
            f"policy '{spec}' ranks layers by their scores, but only layers were given; give scores, or a policy that "
            "needs none: first, last, all, blocks, ends, random:30%:seed=3"
        )
    if scores is not None and scores.ordinal and spec.needs == "magnitudes":
        raise BadSelection(
            f"policy '{spec}' needs scores whose size means something, but these ({scores.criterion}) only state an "
            "order; use top, bottom or params"
        )


def _check_ranks(scores: LayerScores, spec: PolicySpec, mask: LayerMask) -> None:
    alike = bool((scores.values == scores.values[0]).all())
    if alike and not mask.all() and spec.needs != "layers" and spec.name != "above":
        raise BadSelection(
            f"policy '{spec}': all {len(mask)} layers have the score {scores.values[0]:g} ({scores.criterion}), which "
            "ranks nothing; score by another criterion, or choose without scores: first, last, blocks, random:30%"
        )


def top(scores: LayerScores, spec: PolicySpec) -> Choice:
    """The most critical layers."""
    return _at(scores.layers, scores.order()[: spec.argument.of(len(scores.layers))]), {}


def bottom(scores: LayerScores, spec: PolicySpec) -> Choice:
    """The least critical layers: the end of the ranking, so that it is the complement of a `top`, ties included."""
    return _at(scores.layers, scores.order()[-spec.argument.of(len(scores.layers)) :]), {}


def first(layers: Sequence[Layer], spec: PolicySpec) -> Choice:
    """The first layers in forward order."""
    return _at(layers, np.arange(spec.argument.of(len(layers)))), {}


def last(layers: Sequence[Layer], spec: PolicySpec) -> Choice:
    """The last layers in forward order."""
    return _at(layers, np.arange(len(layers))[-spec.argument.of(len(layers)) :]), {}


def everything(layers: Sequence[Layer], spec: PolicySpec) -> Choice:
    """All layers."""
    return np.ones(len(layers), dtype=np.bool_), {}


def random_layers(layers: Sequence[Layer], spec: PolicySpec) -> Choice:
    """A random set of a count, or of a share of the parameters."""
    seed = spec.options["seed"]
    if "params" not in spec.options:
        return draw_count(len(layers), spec.argument.of(len(layers)), seed), {}
    budget = _budget(layers, share(spec.options["params"]), spec)
    return _within(layers, draw_budget(_sizes(layers, spec), budget, seed), budget, spec)


def random_matched(scores: LayerScores, spec: PolicySpec) -> Choice:
    """A random set with the kinds, or nearly the parameters, of the top set of the same amount."""
    match = spec.options.get("match")
    if match is None:
        return random_layers(scores.layers, spec)
    layers, seed, sizes = scores.layers, spec.options["seed"], _sizes(scores.layers, spec)
    reference, _ = top(scores, spec)
    wanted = int(sizes[reference].sum())
    if match == "kind":
        mask = draw_kinds([layer.kind for layer in layers], reference, seed)
    else:
        if wanted == 0:
            raise BadSelection(
                f"policy '{spec}': the layers of 'top:{spec.argument}' have no parameters; use match=kind"
            )
        mask = draw_params(sizes, wanted, seed)
    got = int(sizes[mask].sum())
    return mask, {
        "reference": f"top:{spec.argument}",
        "reference_parameters": wanted,
        "parameters": got,
        "ratio": got / wanted if wanted else None,
        "shared_with_reference": int((mask & reference).sum()),
        **({"only_one": True} if match == "kind" and _whole_kinds(layers, reference) else {}),
    }


def _whole_kinds(layers: Sequence[Layer], mask: LayerMask) -> bool:
    """Whether a set has of each kind all layers or none: no other then has as many of each."""
    chosen, left = ({layer.kind for layer, held in zip(layers, side, strict=True) if held} for side in (mask, ~mask))
    return not chosen & left


def params(layers: Sequence[Layer], spec: PolicySpec) -> Choice:
    """Layers in forward or backward order that fit in a share of the parameters."""
    order = np.arange(len(layers))
    if spec.options["by"] == "last":
        order = order[::-1]
    budget = _budget(layers, spec.argument.share, spec)
    return _within(layers, fill(_sizes(layers, spec), budget, order), budget, spec)


def params_by_score(scores: LayerScores, spec: PolicySpec) -> Choice:
    """The most critical layers within a share of the parameters: down the ranking, each taken where it still fits."""
    by, sizes = spec.options.get("by", "score"), _sizes(scores.layers, spec)
    if by in ("first", "last"):
        return params(scores.layers, spec)
    order = scores.order()
    if by == "density":
        order = ranked(scores.values / np.maximum(sizes, 1), int(scores.sha256[:16], 16))
    elif by == "kinds":
        order = kinds_first(scores)
    budget = _budget(scores.layers, spec.argument.share, spec)
    return _within(scores.layers, fill(sizes, budget, order[::-1] if by == "reverse" else order), budget, spec)


def contiguous(scores: LayerScores, spec: PolicySpec) -> Choice:
    """All scored layers of the run of consecutive blocks with the largest score sum; the earliest where sums tie."""
    by_block: dict[int, list[float]] = {}
    for layer, value in zip(scores.layers, scores.values.tolist(), strict=True):
        if layer.block is not None:
            by_block.setdefault(layer.block, []).append(value)
    length = spec.argument.of(len(by_block), "blocks")
    runs = [range(start, start + length) for start in sorted(by_block)]
    runs = [run for run in runs if all(block in by_block for block in run)]
    if not runs:
        have = ranges(by_block) or "none"
        raise BadSelection(f"policy '{spec}': there is no run of {length} consecutive blocks; scored blocks are {have}")
    sums = [math.fsum(value for block in run for value in by_block[block]) for run in runs]
    best = runs[sums.index(max(sums))]
    return in_blocks(scores.layers, best), {
        "blocks": [best[0], best[-1]],
        "score_sum": max(sums),
        **({"tied_runs": sums.count(max(sums))} if sums.count(max(sums)) > 1 else {}),
    }


def ends(layers: Sequence[Layer], spec: PolicySpec) -> Choice:
    """All layers of the first and of the last block, of the whole network or within a span."""
    present = sorted({layer.block for layer in layers if layer.block is not None})
    if not present:
        raise BadSelection(f"policy '{spec}' needs layers that lie in blocks, and none of these does")
    asked = spec.argument or range(present[0], present[-1] + 1)
    within = [block for block in present if block in asked]
    if not within or asked[-1] > present[-1]:
        raise BadSelection(f"policy '{spec}' reaches outside the model: its layers lie in blocks {ranges(present)}")
    return in_blocks(layers, {within[0], within[-1]}), {}


def blocks(layers: Sequence[Layer], spec: PolicySpec) -> Choice:
    """All layers of the named blocks."""
    return in_blocks(layers, spec.argument), {}


def above(scores: LayerScores, spec: PolicySpec) -> Choice:
    """The layers whose score exceeds the threshold."""
    return scores.values > spec.argument, {"lowest": float(scores.values.min()), "highest": float(scores.values.max())}


def suffix(scores: LayerScores, spec: PolicySpec) -> Choice:
    """At most `amount` layers above the highest cut that still keeps 95 % (`keep=`) of the top set's score sum.

    Below the cut nothing is trained, so the backward pass can end there. Scores <= 0 keep nothing: they count as 0 in
    both sums and are never chosen. With them the sum kept is at least the asked share of the plain sum too, and the top
    set itself always qualifies, so a cut exists whenever any score of the top set is positive.
    """
    count, keep = spec.argument.of(len(scores.layers)), share(spec.options.get("keep", "95%"))
    order, gains = scores.order(), np.maximum(scores.values, 0.0)
    reference = math.fsum(gains[order[:count]])
    if reference == 0:
        raise BadSelection(
            f"policy '{spec}': no score is above 0, so there is nothing to keep; use top, last or params"
        )
    held: list[float] = []
    total, cut = 0.0, len(gains)
    while total < float(keep) * reference * (1 - 1e-12) and cut > 0:  # rounding of running sums
        cut -= 1
        heapq.heappush(held, gains[cut])
        total += gains[cut]
        if len(held) > count:
            total -= heapq.heappop(held)
    chosen = [int(i) for i in order if i >= cut and gains[i] > 0][:count]
    kept = math.fsum(gains[chosen]) / reference
    return _at(scores.layers, np.array(chosen)), {
        "reference": f"top:{spec.argument}",
        "kept": kept,
        "lowest_layer": scores.layers[min(chosen)].name,
    }


WITHOUT_SCORES: dict[str, Callable[[Sequence[Layer], PolicySpec], Choice]] = {
    "first": first,
    "last": last,
    "all": everything,
    "random": random_layers,
    "params": params,
    "ends": ends,
    "blocks": blocks,
}
WITH_SCORES: dict[str, Callable[[LayerScores, PolicySpec], Choice]] = {
    "top": top,
    "bottom": bottom,
    "random": random_matched,
    "params": params_by_score,
    "contiguous": contiguous,
    "above": above,
    "suffix": suffix,
}


def _budget(layers: Sequence[Layer], part: Fraction, spec: PolicySpec) -> int:
    """Parameters that may be spent. Raises BadSelection where no layer fits in them."""
    sizes = _sizes(layers, spec)
    total, smallest = int(sizes.sum()), int(min(sizes[sizes > 0], default=0))
    budget = math.floor(part * total)
    if smallest == 0:
        raise BadSelection(f"policy '{spec}' spends parameters, but none of the layers has any; use a share of layers")
    if budget < smallest:
        raise BadSelection(
            f"policy '{spec}' allows {budget:,} of {total:,} parameters, but the smallest layer has {smallest:,}; "
            f"allow at least {100 * smallest / total:.3g}%"
        )
    return budget


def _within(layers: Sequence[Layer], mask: LayerMask, budget: int, spec: PolicySpec) -> Choice:
    used = int(_sizes(layers, spec)[mask].sum())
    return mask, {"budget": budget, "parameters": used, "share_used": used / budget}


def _sizes(layers: Sequence[Layer], spec: PolicySpec) -> Int[np.ndarray, " layers"]:
    """Parameters of each layer as the policy counts them. Raises BadSelection for scores that lack LoRA's counts."""
    lora = spec.options.get("of") == "lora"
    sizes = np.array([layer.lora_size if lora else layer.size for layer in layers], dtype=np.int64)
    if lora and not sizes.any():
        raise BadSelection(f"policy '{spec}' counts LoRA's parameters, which these scores do not state; score again")
    return sizes


def _at(layers: Sequence[Layer], chosen: Int[np.ndarray, " chosen"]) -> LayerMask:
    mask = np.zeros(len(layers), dtype=np.bool_)
    mask[chosen] = True
    return mask
