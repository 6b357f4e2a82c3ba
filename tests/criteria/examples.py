"""Evidence for the criteria's tests: tiny models, random changes of every sort, and the same changes made by hand."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keylayers import criteria
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.observers import ObservingCriterion
from keylayers.layers.adapted import deltas_from_adapter, unloaded
from keylayers.layers.deltas import Deltas, deltas_from_checkpoints
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import tensors_of
from keylayers.layers.tensors import tensors_in_memory
from keylayers.measures.objective import image_loss, language_loss
from keylayers.training.adapters import LoraSettings, attach_lora
from tests import tiny_models

CONVOLUTIONAL = ("hf-resnet", "cifar-resnet")
EXPERT_MODELS = ("olmoe", "qwen3-moe", "mixtral", "deepseek-v3", "gpt-oss")


def granularity_of(name: str) -> str:
    return "conv" if name in CONVOLUTIONAL else "linear"


def layers_of(name: str, model: nn.Module) -> tuple[Layer, ...]:
    """The layers LoRA and checkpoints are compared on, in forward order."""
    return named_layers(model, granularity_of(name), example=tiny_models.inputs(name))


def batches_of(name: str, count: int = 2, batch: int = 2, seq: int = 8) -> list[dict[str, Tensor]]:
    """Batches of unequal numbers of supervised tokens."""
    made = []
    for index in range(count):
        one: dict[str, Tensor] = dict(tiny_models.inputs(name, batch=batch + index, seq=seq, seed=10 + index))
        if name in tiny_models.VISION:
            one["labels"] = torch.arange(batch + index) % 5
        else:
            one["labels"][:, : 2 + index] = -100
            if name == "t5":  # an encoder reads something else than the answer
                one["input_ids"] = one["input_ids"].flip(1)
            one["attention_mask"] = torch.ones_like(one["input_ids"])
        made.append(one)
    return made


def lora_deltas(model: nn.Module, layers: Sequence[Layer], size: float = 0.15, seed: int = 0) -> Deltas:
    """The changes of random adapters, as large as the weights times `size`, taken as stage 1 takes them."""
    adapted = attach_lora(model, layers, LoraSettings(rank=2, alpha=4.0), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (size * 0.01) ** 0.5)
    try:
        return deltas_from_adapter(adapted, layers)
    finally:
        unloaded(adapted)


def perturbed(model: nn.Module, size: float = 0.15, seed: int = 1) -> nn.Module:
    """A full fine-tune in miniature: every parameter moved, the norms and embeddings too."""
    generator = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * size * parameter.square().mean().sqrt().clamp_min(0.02))
    return tuned


def dense_deltas(model: nn.Module, layers: Sequence[Layer], size: float = 0.15, seed: int = 1) -> Deltas:
    return deltas_from_checkpoints(model, perturbed(model, size, seed), layers)


def evidence_of(
    name: str, kind: str = "lora", *, double: bool = False, size: float = 0.15, every: int = 1, **more: Any
) -> Evidence:
    """A tiny model of that name, two batches, and `lora` or `dense` changes of each `every`-th layer and the last.

    A network's first layer is left out where not all are taken: peft takes the name `conv1` for all that end in it.
    """
    model, data = tiny_models.build(name), batches_of(name)
    if double:
        model = model.double()
        data = [{key: one.double() if one.is_floating_point() else one for key, one in batch.items()} for batch in data]
        if name in EXPERT_MODELS:
            model.set_experts_implementation("eager")  # type: ignore[operator]  # the fused kernel knows no float64
    layers = layers_of(name, model)
    layers = tuple(dict.fromkeys([*layers[every > 1 :: every], layers[-1]]))
    make = {"lora": lora_deltas, "dense": dense_deltas}[kind]
    loss = image_loss if name in tiny_models.VISION else language_loss
    given: dict[str, Any] = {"deltas": make(model, layers, size), "data": data, "loss": loss, **more}
    given.setdefault("weights", tensors_in_memory(model))
    return Evidence(model=model, granularity=granularity_of(name), **given)


def by_hand(model: nn.Module, deltas: Deltas, gates: Sequence[float], remainder: float) -> nn.Module:
    """A copy of the model whose weights really are base + gate * change: nothing of the package's gating is used."""
    edited = copy.deepcopy(model)
    tensors: Mapping[str, Tensor] = tensors_of(edited)
    with torch.no_grad():
        for gate, changes in zip((*gates, remainder), (*deltas.changes, deltas.remainder), strict=True):
            for name, delta in changes.items():
                whole, bracket, index = name.partition("[")
                part = tensors[whole][int(index[:-1])] if bracket else tensors[whole]
                part.add_(gate * delta.dense().to(part))
    return edited


def mean_loss(evidence: Evidence, gates: Sequence[float], remainder: float) -> float:
    """Loss per token of the model edited by hand, over all batches."""
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    edited = by_hand(evidence.model, evidence.deltas, gates, remainder).eval()
    with torch.no_grad():
        pairs = [evidence.loss(edited, batch) for batch in evidence.data]
    return float(sum(float(loss) for loss, _ in pairs)) / sum(count for _, count in pairs)


def scores_blocks_alone(criterion: str) -> bool:
    """Whether a criterion looks at the residual stream, which only blocks have."""
    return isinstance(criteria.get(criterion), ObservingCriterion)


def suited(criterion: str, evidence: Evidence, example: Mapping[str, Tensor] | None = None) -> tuple[Layer, ...]:
    """The layers of the evidence's deltas, or for a criterion of blocks or skips alone those of its model."""
    assert evidence.model is not None and evidence.deltas is not None
    if own := criteria.get(criterion).granularities:
        return named_layers(evidence.model, own[0], example=example)
    return evidence.deltas.layers


class Squared(nn.Module):
    """Two linear maps that add: under squared loss, quadratic in their gates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x) + self.third(x)


def squared_loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Summed squared error, and the number of rows."""
    return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])


def quadratic_evidence(**more: Any) -> Evidence:
    """Three linear maps whose outputs add, under squared loss, float64: the loss is quadratic in the gates."""
    model = Squared().double()
    generator = torch.Generator().manual_seed(3)

    def batch(rows: int) -> dict[str, Tensor]:
        x, y = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in (5, 3))
        return {"x": x, "y": y}

    layers = named_layers(model, "linear")
    given: dict[str, Any] = {"deltas": dense_deltas(model, layers, 0.5), "data": [batch(4), batch(7)], **more}
    given.setdefault("weights", tensors_in_memory(model))
    return Evidence(model=model, loss=squared_loss, **given)


class Quadratic:
    """The same loss written out in numpy: L(g) = |residual + sum_l g_l effect_l|^2 / rows."""

    def __init__(self, evidence: Evidence) -> None:
        assert evidence.data is not None and evidence.deltas is not None and evidence.model is not None
        x, y = (np.concatenate([batch[key].numpy() for batch in evidence.data]) for key in ("x", "y"))
        with torch.no_grad():
            self.residual = evidence.model(torch.from_numpy(x)).numpy() - y
        self.effects = [
            x @ changes[f"{name}.weight"].dense().double().numpy().T + changes[f"{name}.bias"].dense().double().numpy()
            for name, changes in zip(("first", "second", "third"), evidence.deltas.changes, strict=True)
        ]
        self.rows = len(x)

    def loss(self, gates: Sequence[float]) -> float:
        return float(np.square(self._error(gates)).sum() / self.rows)

    def gradient(self, gates: Sequence[float]) -> np.ndarray:
        """dL/dgate."""
        return np.array([2 * (self._error(gates) * effect).sum() / self.rows for effect in self.effects])

    def _error(self, gates: Sequence[float]) -> np.ndarray:
        return self.residual + sum(gate * effect for gate, effect in zip(gates, self.effects, strict=True))
