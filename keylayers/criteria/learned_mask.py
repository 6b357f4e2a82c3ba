"""ILA: gates learned on the change of each layer while everything else is frozen (Shi et al., arXiv:2410.17875)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import Work
from keylayers.errors import BadInput, Diverged
from keylayers.layers.gating import frozen, gated
from keylayers.layers.layer import Layer
from keylayers.maths.gates import expected_open, hard_concrete, soft_top_k
from keylayers.measures.objective import finite, supervised
from keylayers.scores.scores import LayerScores
from keylayers.settings import Count, Inside, NotNegative, Seed


@dataclass(frozen=True)
class LearnedMask(CriterionSettings):
    """Settings of `learned_mask`. The paper's text gives none of the numbers; ours won a trial (`docs/ila.md`)."""

    initial: float = 0.0
    """Score every layer starts from. sigmoid(0) is halfway between base and tuned model, where gates can move both
    ways; from 4, believed the paper's (0.982, nearly the tuned model), they hardly move."""
    optimiser: Literal["adam", "sgd"] = "sgd"
    """`sgd` moves a score by its gradient; `adam` moves all of them by as much, and leaves signs of gradients."""
    learning_rate: NotNegative | None = None
    """Of the scores; None: 3 by sgd, 0.01 by adam."""
    steps: Count = 100
    """Optimisation steps at most; one batch each, in a seeded order."""
    rest: NotNegative = 0.0
    """Stop where no gate moved by so much over the last 25 steps; 0: take all steps."""
    records: Literal["calibration", "training"] = "calibration"
    """What the gates are learnt on: calibration records, or, as in the paper, those that the deltas were trained on
    (of `--data`'s training split; with `--tuned`, you alone know whether these are the same)."""
    budget: Literal["none", "top_k", "l0"] = "none"
    """`none` is the paper's relaxed form (Eq. 6, 7), where nothing makes the gates sparse; `top_k` keeps their sum at
    `share` of the layers; `l0` adds `penalty` times the expected share of open hard-concrete gates to the loss."""
    share: Inside = 0.3
    penalty: NotNegative = 0.1
    """nats per token for all gates open against none."""
    seeds: Count = 1
    """Independent runs over differently ordered batches; more than one give intervals."""
    seed: Seed = 0
    save_every: Count = 25
    """Steps between saved states, from which an interrupted run resumes."""


RATES = {"sgd": 3.0, "adam": 0.01}
"""Optimiser -> learning rate of the scores, where none is given."""

_WINDOW = 25
"""Steps over which gates that are at rest must not have moved."""


@dataclass(frozen=True)
class _Learnt:
    """What one seed's run ended in."""

    scores: Float[Tensor, " layers"]
    gates: Float[Tensor, " layers"]
    """Without noise."""
    losses: Float[Tensor, " steps"]
    """Of each step's batch, nats per token."""


def _work(layers: Sequence[Layer], settings: LearnedMask, batches: int) -> Work:
    return Work(0, settings.seeds * settings.steps)  # one batch a step, however many there are


@criterion("model", "deltas", "data", settings=LearnedMask, work=_work)
def score_learned_mask(evidence: Evidence, layers: Sequence[Layer], settings: LearnedMask) -> LayerScores:
    """The learned score s of each layer's gate sigmoid(s); any real number, mean over seeds.

    Gates multiply the *change* of each layer, theta_0 + sigmoid(s) * delta (Eq. 6), and s alone is trained on the loss
    (Eq. 7), the deltas being fixed. Cost: `seeds * steps` forward and backward passes of one batch. The provenance
    notes the lowest, median and highest gate of each seed's end: where none is near 0, no layer was ever taken away.

    Raises:
        BadInput: for settings out of range, or training records that are not at hand.
        Diverged: if a loss or a gate's gradient is not finite; names step and layer.
    """
    if settings.learning_rate is None:
        settings = replace(settings, learning_rate=RATES[settings.optimiser])
    evidence = _on_records(evidence, settings)
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    held = replace(evidence, deltas=evidence.deltas.held())
    with frozen(evidence.model), torch.enable_grad():
        learnt = [_learn(held, layers, settings, repeat) for repeat in range(settings.seeds)]
    repeats = torch.stack([one.scores for one in learnt])
    return scored(
        evidence,
        layers,
        repeats.mean(0),
        criterion="learned_mask",
        settings=settings,
        repeats=repeats if settings.seeds > 1 else None,
        losses=[[round(value, 4) for value in one.losses.tolist()] for one in learnt],
        gates=[[round(float(one.gates.quantile(q)), 4) for q in (0, 0.5, 1)] for one in learnt],
    )


def _on_records(evidence: Evidence, settings: LearnedMask) -> Evidence:
    """The evidence with the records that the gates are learnt on as its data, also in its provenance."""
    found = evidence.training if settings.records == "training" else evidence.data
    if not found:
        raise BadInput(
            f"learned_mask: records={settings.records!r}, but no such records are at hand",
            "give records that a training part can be taken of",
            "learn on the calibration records",
        )
    if settings.records == "calibration":
        return evidence
    splits = [one for one in evidence.provenance.data if one.get("split") == "train"]
    noted = replace(evidence.provenance, data=tuple({**one, "batches": len(found)} for one in splits))
    return replace(evidence, data=found, provenance=noted if splits else evidence.provenance)


def _gates(scores: Tensor, settings: LearnedMask, noise: torch.Generator | None) -> Tensor:
    if settings.budget == "top_k":
        return soft_top_k(scores, settings.share * len(scores))
    if settings.budget == "l0":
        return hard_concrete(scores, noise)
    return torch.sigmoid(scores)


def _learn(evidence: Evidence, layers: Sequence[Layer], settings: LearnedMask, repeat: int) -> _Learnt:
    """One seed's run; goes on from the state the evidence keeps."""
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    seed, noise = settings.seed + repeat, torch.Generator()
    scores = torch.full((len(layers),), float(settings.initial), requires_grad=True)
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.optimiser]
    optimiser = make([scores], lr=settings.learning_rate)
    keep = evidence.checkpoint(f"learned_mask-{seed}") if evidence.checkpoint else None
    identity = _identity(evidence, layers, settings)
    start, used, losses, earlier = 0, scores, torch.zeros(settings.steps), scores.detach().clone()
    if keep is not None and (state := keep.load()) is not None:
        start, tensors, stored = state
        _check_state(start, stored, settings, identity)
        with torch.no_grad():
            scores.copy_(tensors.pop("scores"))
            losses[:start] = tensors.pop("losses", torch.zeros(start))
            earlier = tensors.pop("earlier")
        optimiser.state[scores] = dict(tensors)

    def gates() -> Tensor:
        nonlocal used
        used = _gates(scores, settings, noise)
        used.retain_grad()
        return used

    with gated(evidence.model, evidence.deltas, gates):
        for step in range(start, settings.steps):
            if settings.rest and step and step % _WINDOW == 0:
                if float((_still(scores, settings) - _still(earlier, settings)).abs().max()) < settings.rest:
                    losses = losses[:step]
                    break
                earlier = scores.detach().clone()
            noise.manual_seed(seed * 1_000_003 + step)
            batch = evidence.data[_batch_at(step, len(evidence.data), seed)]
            summed, terms = evidence.loss(evidence.model, batch)
            loss = summed / supervised(terms)
            value = finite(float(loss.detach()), f"learned_mask: the loss at step {step}")
            losses[step] = value
            if settings.budget == "l0":
                loss = loss + settings.penalty * expected_open(scores) / len(layers)
            optimiser.zero_grad()
            loss.backward()
            _check_gradient(used.grad, layers, step)
            optimiser.step()
            done = step + 1
            if evidence.progress:
                evidence.progress(repeat * settings.steps + done, settings.seeds * settings.steps, value)
            if keep is not None and (done % settings.save_every == 0 or done == settings.steps):
                moments = {key: one for key, one in optimiser.state.get(scores, {}).items() if isinstance(one, Tensor)}
                kept = {"scores": scores.detach(), "losses": losses[:done], "earlier": earlier}
                keep.save(done, {**kept, **moments}, identity)
    return _Learnt(scores.detach().clone(), _still(scores, settings), losses)


def _still(scores: Tensor, settings: LearnedMask) -> Float[Tensor, " layers"]:
    """The gates without noise."""
    return _gates(scores.detach(), settings, None)


def _check_gradient(gradient: Tensor | None, layers: Sequence[Layer], step: int) -> None:
    """Raises Diverged naming the first layer whose gate has no finite gradient; none at all is as if it were 0."""
    if gradient is not None and len(bad := (~torch.isfinite(gradient)).nonzero()):
        raise Diverged(
            f"learned_mask: the gradient of layer {layers[int(bad[0])].name} is not finite at step {step}",
            "compute in fp32 (`dtype=float32`)",
            "check what tuning changed in that layer",
        )


def _identity(evidence: Evidence, layers: Sequence[Layer], settings: LearnedMask) -> dict[str, Any]:
    """What must be the same for a kept state to be one of this run; more steps or seeds may be asked for."""
    assert evidence.data is not None
    names = "\n".join(layer.name for layer in layers)
    shape = {"layers": len(layers), "names": hashlib.sha256(names.encode()).hexdigest(), "batches": len(evidence.data)}
    return shape | {
        key: one for key, one in asdict(settings).items() if key not in ("steps", "seeds", "save_every", "seed")
    }


def _check_state(done: int, stored: Mapping[str, Any], settings: LearnedMask, identity: Mapping[str, Any]) -> None:
    differing = [
        f"{key} (stored {stored.get(key)!r}, given {one!r})" for key, one in identity.items() if stored.get(key) != one
    ]
    if done > settings.steps:
        differing.append(f"steps (stored {done}, given {settings.steps})")
    if differing:
        raise BadInput(
            f"learned_mask: the state kept here is of another run: {', '.join(differing)}",
            "score into another folder (`out`)",
            "start over with `fresh`",
        )


def _batch_at(step: int, count: int, seed: int) -> int:
    """Which batch a step sees: each once per epoch, in an order of seed and epoch alone, so resuming is exact."""
    epoch, place = divmod(step, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return int(order[place])
