"""What a network does after its last block, as one function of hidden states: final norm, head, soft cap."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.blocks import find_blocks
from keylayers.layers.capturing import first_tensor
from keylayers.layers.structure import inner_module, module_named, uncompiled, unwrap, walk

_CLOSE = 1e-3  # of the logits' spread, in fp32; what runs twice in one precision agrees far better


@dataclass(frozen=True)
class Readout:
    """Hidden states of the residual stream -> logits, position by position."""

    modules: tuple[nn.Module, ...]
    """Called in turn: the final norm and the head, whatever they are called."""
    scale: float = 1.0
    """Logits are multiplied by it (Cohere, Granite)."""
    cap: float | None = None
    """Soft cap c: logits become c tanh(logits / c) (Gemma 2)."""

    def __call__(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Logits as the model makes them, before any softmax; in its precision."""
        state: Any = hidden
        for module in self.modules:
            state = first_tensor(module(state))
        logits = state if self.scale == 1.0 else state * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def readout_of(model: nn.Module, run: Callable[[], Tensor]) -> Readout:
    """The readout found by running the model: the outermost modules that begin after the last block has ended.

    `run` makes one forward pass and gives its logits (batch, positions, vocab), which the readout must reproduce from
    the last block's output; what is not a module (scale, soft cap) is read from the configuration.

    Raises:
        BadInput: if the model has no logits per position, or does more after its blocks than a readout can say.
    """
    blocks = find_blocks(model)
    if not blocks:
        raise BadInput(f"{type(unwrap(model)).__name__} has no blocks, so it has no logit lens.")
    after: list[nn.Module] = []
    depth, last = 0, dict[str, Tensor]()

    def begin(module: nn.Module, args: object) -> None:
        nonlocal depth
        if "output" in last:
            if depth == 0:
                after.append(module)
            depth += 1

    def end(module: nn.Module, args: object, output: object) -> None:
        nonlocal depth
        if "output" in last and depth:
            depth -= 1

    def ended(module: nn.Module, args: object, output: object) -> None:
        last["output"] = first_tensor(output)

    inside = {node.name for node in walk(model) if any(node.name.startswith(f"{block}.") for block in blocks)}
    holding = {name.rpartition(".")[0] for name in blocks}
    above = {place[:at] for place in holding for at in range(len(place) + 1)}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(uncompiled(model))
        stack.callback(module_named(model, blocks[-1]).register_forward_hook(ended).remove)
        for node in walk(model):
            if node.name and node.name not in inside and node.name not in blocks and node.name not in above:
                stack.callback(node.module.register_forward_pre_hook(begin).remove)
                stack.callback(node.module.register_forward_hook(end).remove)
        logits = run()
    if "output" not in last:
        raise BadInput(f"the last block, {blocks[-1]}, never ran, so nothing after it can be found.")
    config: Any = getattr(inner_module(unwrap(model)), "config", None)
    found = Readout(tuple(after), _scale(config), getattr(config, "final_logit_softcapping", None))
    with torch.no_grad():
        _check(found, last["output"], logits, type(inner_module(unwrap(model))).__name__)
    return found


def _scale(config: Any) -> float:
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def _check(found: Readout, hidden: Tensor, logits: Tensor, name: str) -> None:
    """Raises BadInput unless the readout of the last block's output is what the model said."""
    if hidden.ndim != 3 or logits.ndim != 3 or logits.shape[:2] != hidden.shape[:2]:
        raise BadInput(
            f"{name} gives outputs of shape {tuple(logits.shape)} for hidden states of {tuple(hidden.shape)}; a logit "
            "lens needs a prediction at every position."
        )
    try:
        again = found(hidden.flatten(0, 1)).view_as(logits)
    except Exception as error:  # whatever a module of an unknown network raises when called by itself
        raise BadInput(
            f"what {name} does after its blocks cannot be called by itself ({error}); no logit lens."
        ) from error
    spread = float(logits.float().std().clamp_min(1e-30))
    if not float((again - logits).abs().max()) <= max(_CLOSE, 8 * torch.finfo(logits.dtype).eps) * spread:
        raise BadInput(
            f"{name} does more after its blocks than its final norm, head, scale and soft cap: they give other logits."
        )
