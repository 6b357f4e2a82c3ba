"""Layers that train by turns: a new selection every so many steps, all others stand still."""

from collections.abc import Callable

from torch import nn

from keylayers.errors import BadInput
from keylayers.scores import Selection
from keylayers.training.adapters import adapted_layers


def by_turns(adapted: nn.Module, reselect: Callable[[int], Selection], every: int) -> Callable[[int], None]:
    """A hook for `train(before_step=...)`: from step 0, every `every` steps, only a new selection's adapters train.

    `reselect` takes the number of the turn and knows the criterion, if there is one; random selections make it LISA
    (Pan et al. 2024) over adapters.

    # deviates: LISA trains whole blocks, with embeddings and head always on; here adapters of the selection alone,
    # because all arms of a comparison train the same number of LoRA parameters at a time

    Adam's state of a layer that stands still is kept as it is and used when its turn comes again.

    Raises:
        BadInput: for turns of no step, or (during training) a selection of layers without adapters.
    """
    if every < 1:
        raise BadInput(f"a turn of {every} steps: expected at least 1.")
    adapters = adapted_layers(adapted)

    def before_step(step: int) -> None:
        if step % every:
            return
        chosen = set(reselect(step // every).names)
        if strange := sorted(chosen - adapters.keys()):
            raise BadInput(f"{len(strange)} layers of a turn carry no adapter, such as {strange[0]}; adapt them too.")
        for name, module in adapters.items():
            for part in (module.lora_A, module.lora_B):  # its own: experts of one parameter nest
                part.requires_grad_(name in chosen)

    return before_step
