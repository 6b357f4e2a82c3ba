"""What criteria need that never run the model: its layers, and its weights as they lie on disk."""

from collections.abc import Collection

from keylayers.inputs.text import Inputs
from keylayers.layers.tensors import TensorSource, refuse_pickles
from keylayers.models.loading import LoadedModel, dtype_named, load_shape
from keylayers.models.sources import is_factory, local_folder
from keylayers.models.stored import stored_weights
from keylayers.runs import note


def read_weights(inputs: Inputs, needs: Collection[str]) -> tuple[LoadedModel, TensorSource | None] | None:
    """The model's shape, on the meta device, with its tensors on disk where they are needed; None if it must be loaded.

    It must be where something else than weights is needed, where pickles are allowed, or where the checkpoint does not
    stream; the last is said on standard error.

    Raises:
        UnknownName: for a dtype that does not exist, though nothing is computed in it.
        BadInput: for a folder that holds its weights as pickles only.
    """
    if inputs.dtype != "auto":
        dtype_named(inputs.dtype)
    trusted = inputs.trust_remote_code
    if not needs:
        if not inputs.allow_pickle:
            _refuse_pickled(inputs.model)
        return LoadedModel(load_shape(inputs.model, trust_remote_code=trusted), inputs.model), None
    if set(needs) != {"weights"} or inputs.allow_pickle:
        return None
    found = stored_weights(inputs.model, weights=inputs.weights, trust_remote_code=trusted)
    if found is None:
        note(f"the weights of {inputs.model} cannot be read without building the model, so it is loaded")
    return found


def _refuse_pickled(source: str) -> None:
    folder = None if is_factory(source) else local_folder(source)
    if folder is not None and not any(folder.glob("*.safetensors")):
        refuse_pickles(folder.glob("*"))
