"""What the doctor examines: a model, a small input for it, and how near two outputs must be to count as equal."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from keylayers.actions.finetuning import is_quantised
from keylayers.errors import BadInput
from keylayers.layers.blocks import find_blocks
from keylayers.layers.capturing import first_tensor
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.ordering import example_inputs
from keylayers.layers.structure import inner_module, unwrap
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import Loss, image_loss, language_loss, model_device, on_device
from keylayers.models.families import family_of
from keylayers.models.loading import LoadedModel

Inputs = dict[str, Any]
Item = TypeVar("Item")

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference, relative to the largest value, that counts as rounding in each precision."""
IMAGES = ((3, 32, 32), (1, 28, 28), (3, 224, 224))
"""Shapes tried on a network that does not say what it takes."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one gate."""

    name: str
    status: Literal["pass", "fail", "skip"]
    detail: str
    """What was compared, with figures; for a skipped gate, why."""
    remedy: str = ""
    """What to do about a failure."""
    seconds: float = 0.0


class Skipped(Exception):
    """Raised by a gate that has nothing to look at; its text says why."""


def passed(detail: str) -> CheckResult:
    """A gate that holds."""
    return CheckResult("", "pass", detail)


def failed(detail: str, remedy: str) -> CheckResult:
    """A gate that does not hold."""
    return CheckResult("", "fail", detail, remedy)


@dataclass(frozen=True)
class ModelUnderTest:
    """A loaded model with what the gates look at."""

    loaded: LoadedModel
    inputs: Inputs | None
    """A small seeded input; None where none could be made."""
    other: Inputs | None
    """Another of the same shape."""
    most: int = 12
    """Layers, and blocks, that the costly gates look at."""
    labels: Tensor | None = None
    findings: dict[str, CheckResult] = field(default_factory=dict)
    """What earlier gates found."""

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self.loaded.model

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the residual blocks."""
        return find_blocks(self.model)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Everything with weights that can be scored: linear layers, fused expert tensors, convolutions."""
        return layers_of(self.model, "linear") + layers_of(self.model, "conv")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next((value.dtype for value in self.model.parameters() if value.dtype in ROUNDING), torch.float32)

    @property
    def rounding(self) -> float:
        """Largest relative difference that counts as rounding; 4-bit kernels round as coarsely as bf16."""
        return ROUNDING[torch.bfloat16 if is_quantised(self.model) else self.dtype]

    def probe(self) -> tuple[Inputs, Inputs]:
        """Two inputs. Raises Skipped if the network cannot be run."""
        if any(value.is_meta for value in self.model.parameters()):
            raise Skipped("the model is on the meta device: it has shapes but no weights")
        if self.inputs is None or self.other is None:
            raise Skipped("no input could be made: the network says neither what it takes nor accepts plain images")
        return self.inputs, self.other

    def run(self, inputs: Inputs | None = None) -> Tensor:
        """The model's output for an input, its logits where it has such; what the caller set (gradients) holds."""
        return output_of(self.model, inputs if inputs is not None else self.probe()[0])


def layers_of(model: nn.Module, granularity: str, *, tied: bool = False) -> tuple[Layer, ...]:
    """The layers of that granularity; none where the network has none."""
    try:
        return named_layers(model, granularity, tied=tied)
    except BadInput:
        return ()


def output_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """What the model returns: its logits, or else the first tensor."""
    config = getattr(inner_module(unwrap(model)), "config", None)
    cache = {"use_cache": False} if hasattr(config, "use_cache") else {}
    output: Any = model(**on_device(inputs, model_device(model)), **cache)
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else first_tensor(output)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where shapes differ or a number is not finite."""
    if a.shape != b.shape:
        return float("inf")
    if torch.equal(a, b):
        return 0.0
    worst = float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))
    return worst if worst == worst else float("inf")


def digest(tensor: Tensor) -> tuple[float, float]:
    """Two numbers by which one set of hidden states is told from another."""
    precise = tensor.detach().double()
    return float(precise.sum()), float(precise.square().sum())


def spread(items: Sequence[Item], most: int) -> tuple[Item, ...]:
    """At most that many of the items, evenly spaced, both ends included."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most))


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def make_patient(
    loaded: LoadedModel, *, batch: int = 2, seq: int = 32, most: int = 12, seed: int = 0
) -> ModelUnderTest:
    """The model with two small seeded inputs, found by what it says of itself or by trying images."""
    maker = input_maker(loaded)
    if maker is None:
        return ModelUnderTest(loaded, None, None, most)
    return ModelUnderTest(loaded, maker(batch, seq, seed), maker(batch, seq, seed + 1), most)


def input_maker(loaded: LoadedModel) -> Callable[[int, int, int], Inputs] | None:
    """(batch, seq, seed) -> an input of random tokens or images; None where the network says nothing and takes none."""
    root: Any = inner_module(unwrap(loaded.model))
    if any(value.is_meta for value in root.parameters()):
        return None
    example = example_inputs(root)
    if example is not None and "input_ids" in example:
        return lambda batch, seq, seed: {
            key: _tokens(root, loaded.context, batch, seq, seed + place) for place, key in enumerate(example)
        }
    if example is not None:
        key, shape = next((key, tuple(value.shape[1:])) for key, value in example.items())
        return lambda batch, seq, seed: {key: _images(batch, shape, seed, root)}
    return _tried(root)


def _tried(root: nn.Module) -> Callable[[int, int, int], Inputs] | None:
    """The first of the usual image shapes that the network takes."""
    name = next(iter(inspect.signature(root.forward).parameters), None)
    for shape in IMAGES if name else ():
        try:
            with torch.no_grad(), evaluating(root):
                output_of(root, {str(name): _images(2, shape, 0, root)})
        except Exception:
            continue
        return partial(_named_images, str(name), shape, root)
    return None


def _tokens(root: Any, context: int, batch: int, seq: int, seed: int) -> Tensor:
    rows = root.get_input_embeddings().num_embeddings
    low = 3 if rows > 8 else 0  # past the usual places of padding, start and end
    return torch.randint(low, rows, (batch, min(seq, context)), generator=torch.Generator().manual_seed(seed))


def _named_images(name: str, shape: tuple[int, ...], root: nn.Module, batch: int, seq: int, seed: int) -> Inputs:
    return {name: _images(batch, shape, seed, root)}


def _images(batch: int, shape: tuple[int, ...], seed: int, root: nn.Module) -> Tensor:
    floating = (value.dtype for value in root.parameters() if value.is_floating_point())
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed)).to(next(floating, torch.float32))


def loss_for(model: nn.Module, inputs: Inputs) -> tuple[Loss, Inputs] | None:
    """The loss that suits the network, and the input with labels for it; None for a network without logits,
    or one that sees all that it could be asked for."""
    if "input_ids" in inputs:
        root: Any = inner_module(unwrap(model))
        family, ids = family_of(root), inputs["input_ids"]
        if root.get_output_embeddings() is None or family == "bidirectional":
            return None
        batch = {key: value for key, value in inputs.items() if key != "decoder_input_ids"}
        labels = ids.roll(1, dims=1) if family == "masked" else ids.clone()  # else it sees what it is asked for
        return language_loss, {**batch, "labels": labels}
    count = len(next(iter(inputs.values())))
    return image_loss, {**inputs, "labels": torch.zeros(count, dtype=torch.long)}


def projected(output: Tensor) -> Tensor:
    """A scalar that every entry of an output contributes to at random, of order 1: differentiable, seeded, fp64."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
    return (output.double() * weights).sum() / output.numel() ** 0.5
