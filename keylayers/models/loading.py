"""One way in for every model a user may name, safe by default: safetensors only, no remote code unless asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.blocks import scalars
from keylayers.layers.structure import parameters_of
from keylayers.models import trust
from keylayers.models.factory import from_factory
from keylayers.models.families import context_of
from keylayers.models.sources import is_factory, local_folder
from keylayers.models.trust import Trust


@dataclass(frozen=True)
class LoadedModel:
    """A network and what is needed to use and to name it."""

    model: nn.Module
    source: str
    """As the user typed it."""
    tokenizer: Any = None
    no_tokenizer: str = ""
    """Why there is none, where it came with one that cannot be read."""
    folder: Path | None = None
    """Where its safetensors lie, if on this machine."""

    @property
    def context(self) -> int:
        """Longest sequence in tokens; 1024 where the model does not say."""
        return context_of(self.model) or 1024

    def identity(self) -> dict[str, Any]:
        """What a score file says about the model: id, revision, architecture, number of parameters."""
        unique = {id(value): value for value in parameters_of(self.model).values()}
        config = getattr(self.model, "config", None)
        return {
            "id": self.source,
            "revision": getattr(config, "_commit_hash", None),
            "architecture": type(self.model).__name__,
            "parameters": sum(scalars(value) for value in unique.values()),
        }


def load_model(
    source: str,
    *,
    weights: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    four_bit: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The model a source names, with its tokenizer where it has one, in eval mode.

    `dtype="auto"` computes in fp32 on a CPU and in the checkpoint's own precision on an accelerator.

    Raises:
        UnknownName: for a bundled name, module or factory that does not exist.
        BadInput: for a folder or hub id without loadable safetensors, or weights that do not fit the network.
    """
    if is_factory(source):
        return LoadedModel(from_factory(source, weights, allow_pickle), source)
    if weights is not None:
        raise BadInput(f"`weights` goes with a factory (package.module:function), but the model is {source!r}.")
    trusted = Trust(trust_remote_code, allow_pickle)
    folder = local_folder(source)
    if folder is not None:
        trust.check_place(folder, trusted)
    place = str(folder) if folder is not None else source
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    options = {"dtype": (torch.float32 if target == "cpu" else "auto") if dtype == "auto" else dtype_named(dtype)}
    if four_bit:
        options["quantization_config"] = _nf4(options["dtype"])
    config = trust.config_of(place, trusted)
    made = trust.class_of(config, place, trusted)
    model, report = trust.load(made, config, place, trusted, **options)
    if missing := sorted(report["missing_keys"]):
        raise BadInput(
            f"the checkpoint of {source!r} lacks {len(missing)} tensors that its configuration asks for "
            f"({', '.join(missing[:3])}) and that would be random; give a complete checkpoint of this architecture."
        )
    if not four_bit:
        model = model.to(target)
    return LoadedModel(model.eval(), source, *_tokenizer(place, config, trusted), folder)


def load_shape(source: str, *, trust_remote_code: bool = False) -> nn.Module:
    """The network without its weights, on the meta device: enough to list layers of a model of any size.

    Raises:
        UnknownName: for a bundled name, module or factory that does not exist.
        BadInput: for a folder or hub id without a configuration that describes a model of transformers.
    """
    if is_factory(source):
        with torch.device("meta"):
            return from_factory(source)
    trusted, folder = Trust(trust_remote_code), local_folder(source)
    place = str(folder) if folder is not None else source
    config = trust.config_of(place, trusted)
    made = trust.class_of(config, place, trusted)
    with torch.device("meta"):
        return trust.build(made, config, place, trusted).eval()


def load_outline(source: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """The network on the meta device, with its tokenizer: enough to list layers, and to make data its tokens.

    Raises:
        UnknownName, BadInput: as `load_shape` does.
    """
    model = load_shape(source, trust_remote_code=trust_remote_code)
    if is_factory(source):
        return LoadedModel(model, source)
    folder, trusted = local_folder(source), Trust(trust_remote_code)
    place = str(folder) if folder is not None else source
    return LoadedModel(model, source, *_tokenizer(place, model.config, trusted), folder)


def _tokenizer(place: str, config: Any, trusted: Trust) -> tuple[Any, str]:
    """The tokenizer, or none and why it cannot be read: weights may be all that is needed."""
    try:
        return trust.tokenizer_of(place, config, trusted), ""
    except BadInput as error:
        return None, str(error)


def dtype_named(name: str) -> Any:
    """torch's dtype of that name. Raises UnknownName."""
    known = ("float32", "bfloat16", "float16", "float64")
    if name not in known:
        raise UnknownName("dtype", name, ("auto", *known))
    return getattr(torch, name)


def _nf4(compute: Any) -> Any:
    from transformers import BitsAndBytesConfig

    compute = torch.float32 if isinstance(compute, str) else compute
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
