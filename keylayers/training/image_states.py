"""Where a training of images stands after an epoch, kept so that it goes on from there as if nothing had happened."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Keeps(Protocol):
    """A place for the states of a loop (`RunFolder.checkpoint`)."""

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], /) -> None:
        """Stores the state after so many epochs."""

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest one; None where there is none."""


@dataclass(frozen=True)
class Stood:
    """Where a training was left."""

    epoch: int
    """How many are done."""
    step: int
    losses: list[float]
    trained: list[str]
    """Parameters that the optimiser had."""
    momenta: dict[str, Tensor]

    def into(self, optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
        """Its momenta, where it is for the same parameters; one for others has none yet."""
        named = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if list(named) == self.trained:
            for name, momentum in self.momenta.items():
                optimiser.state[named[name]]["momentum_buffer"] = momentum.to(named[name].device)


def keep_state(
    keeps: Keeps, epoch: int, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, order: torch.Generator,
    losses: list[float],
) -> None:  # fmt: skip
    """Stores weights, running statistics, momenta and both random states. Memory: a copy of them."""
    names: dict[Tensor, str] = {one: name for name, one in model.named_parameters()}
    tensors = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    for one, held in optimiser.state.items():
        if (momentum := held.get("momentum_buffer")) is not None:
            tensors[f"momentum.{names[one]}"] = momentum.clone()
    tensors |= {"random": torch.get_rng_state(), "order": order.get_state()}
    tensors |= {f"cuda.{index}": state for index, state in enumerate(_cuda_states())}
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    keeps.save(epoch, tensors, {"step": step, "losses": losses, "trained": trained})


def take_up(keeps: Keeps, model: nn.Module, order: torch.Generator) -> Stood | None:
    """Puts weights, statistics and random states back; None where nothing was kept."""
    if (found := keeps.load()) is None:
        return None
    epoch, tensors, meta = found
    model.load_state_dict(
        {name[len("model.") :]: value for name, value in tensors.items() if name.startswith("model.")}
    )
    torch.set_rng_state(tensors["random"])
    order.set_state(tensors["order"])
    for index, _ in enumerate(_cuda_states()):
        torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
    momenta = {name[len("momentum.") :]: value for name, value in tensors.items() if name.startswith("momentum.")}
    return Stood(epoch, meta["step"], list(meta["losses"]), list(meta["trained"]), momenta)


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
