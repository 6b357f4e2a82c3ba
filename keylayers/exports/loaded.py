"""Which networks the trainers load themselves, by transformers, so that names here are names there."""

from torch import nn
from transformers import PreTrainedModel

from keylayers.exports.target import CannotExpress
from keylayers.layers.structure import unwrap


def require_loadable(model: nn.Module, tool: str, *, generates: bool) -> None:
    """Checks that the tool would build this very network from its model name.

    Raises:
        CannotExpress: for a network that is no transformers model; for one without its head, since the tool would load
            it with one and find every name under a prefix; with `generates`, for one that generates no text, which
            peft refuses for the task type that the tool asks for.
    """
    network = unwrap(model)
    name = type(network).__name__
    if not isinstance(network, PreTrainedModel):
        raise CannotExpress(f"{tool} loads models of transformers, and {name} is none.")
    if _is_body(network):
        raise CannotExpress(
            f"{tool} loads a model with its head, where names begin with {network.base_model_prefix!r}, but {name} is "
            "the network below it; export from the whole model."
        )
    if generates and not hasattr(network, "prepare_inputs_for_generation"):
        raise CannotExpress(f"{tool} trains models that generate text, and {name} does not.")


def _is_body(network: PreTrainedModel) -> bool:
    """Whether heads are put on this network, by transformers' custom: LlamaModel is the body of LlamaForCausalLM."""
    return (
        bool(network.base_model_prefix) and network.base_model is network and type(network).__name__.endswith("Model")
    )
