"""The loss drop that Adam's first step would bring through each layer's LoRA: no tuning needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import groups_of
from keylayers.criteria.support.cost import Work
from keylayers.errors import BadInput
from keylayers.layers.adapter_undo import restored
from keylayers.layers.layer import Layer
from keylayers.measures.objective import finite, supervised
from keylayers.scores.scores import LayerScores
from keylayers.settings import Count, Seed
from keylayers.training.adapters import LoraSettings, adapted_layers, attach_lora


@dataclass(frozen=True)
class FirstStep(CriterionSettings):
    """Settings of `first_step`."""

    rank: Count = 8
    """Of the adapters whose first step is asked for."""
    seed: Seed = 0
    """Of their random half."""


def _work(layers: Sequence[Layer], settings: FirstStep, batches: int) -> Work:
    return Work(0, batches)


def _fits(layers: Sequence[Layer], settings: FirstStep, batches: int) -> None:
    if batches < 2:
        raise BadInput(
            f"first_step judges a step on other batches than it is made of, but there is {batches}",
            "give more calibration records",
            "take a smaller `batch_size`",
        )


@criterion("model", "data", settings=FirstStep, work=_work, fits=_fits)
def score_first_step(evidence: Evidence, layers: Sequence[Layer], settings: FirstStep) -> LayerScores:
    """Loss drop per unit of learning rate along Adam's first step, in nats per token; negative where it would do harm.

    LoRA starts with B = 0 and A random, so only B has a gradient g. Adam divides each entry by the root of its mean
    square v over the batches. The step is made of some batches and its effect measured on the others, so that noise
    counts as nothing rather than as progress:
        score_l = mean over groups k of  sum_i g_i^(k) g_i^(not k) / sqrt(v_i),   i in the entries of B_l.
    Adam gives every entry of every layer about the same step, which is what makes the layers comparable.
    Cost: one forward and backward pass over the data; memory: the adapters' B, once per group (at most 8).

    Raises:
        BadInput: for fewer than two batches, which cannot be split. Diverged: if a loss is not finite.
    """
    assert evidence.model is not None and evidence.data is not None
    groups = groups_of(len(evidence.data))
    lora = LoraSettings(rank=settings.rank, alpha=2.0 * settings.rank)
    with restored(evidence.model), torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
        adapted = attach_lora(evidence.model, layers, lora, settings.seed).eval()
        thin = adapted_layers(adapted)
        weights = [thin[layer.name].lora_B["default"].weight for layer in layers]
        sums, squares, terms = _gradients(evidence, adapted, weights, groups)
    repeats = np.stack([_gains(sums, squares, terms, held, len(evidence.data)) for held in range(len(groups))])
    return scored(evidence, layers, repeats.mean(0), criterion="first_step", settings=settings, repeats=repeats)


def _gradients(
    evidence: Evidence, adapted: nn.Module, weights: Sequence[Tensor], groups: list[list[int]]
) -> tuple[list[list[Tensor]], list[Tensor], list[int]]:
    """Of each weight the gradient of the summed loss over each group of batches, and the sum over all batches of the
    squared gradient of a batch's mean loss; tokens of each group."""
    assert evidence.data is not None
    sums = [[torch.zeros_like(weight) for _ in groups] for weight in weights]
    squares, terms, done = [torch.zeros_like(weight) for weight in weights], [0] * len(groups), 0
    for group, members in enumerate(groups):
        for index in members:
            loss, count = evidence.loss(adapted, evidence.data[index])
            finite(float(loss.detach()), f"first_step: the loss of batch {index}")
            found = torch.autograd.grad(loss, weights, allow_unused=True)  # none where no token came to an expert
            terms[group] += count
            for gradient, by_group, squared in zip(found, sums, squares, strict=True):
                if gradient is not None:
                    by_group[group] += gradient
                    squared += (gradient / max(count, 1)) ** 2
            done += 1
            if evidence.progress:
                evidence.progress(done, len(evidence.data), 0.0)
    supervised(sum(terms))
    return sums, squares, terms


def _gains(
    sums: list[list[Tensor]], squares: list[Tensor], terms: list[int], held: int, batches: int
) -> Float[np.ndarray, " layers"]:
    """Loss drop per token on one group of batches along the step that all others make, per layer."""
    inside, outside = max(terms[held], 1), max(sum(terms) - terms[held], 1)
    gains = []
    for by_group, squared in zip(sums, squares, strict=True):
        others = torch.stack([value for group, value in enumerate(by_group) if group != held]).sum(0)
        step = (others / outside).double() / (squared.double() / batches).sqrt().clamp_min(1e-30)
        gains.append(float(((by_group[held] / inside).double() * step).sum()))
    return np.array(gains)
