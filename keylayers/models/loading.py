"""One way in for every model a user may name, safe by default: safetensors only, no remote code unless asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.blocks import scalars
from keylayers.layers.structure import parameters_of
from keylayers.layers.tensors import refuse_pickles
from keylayers.models.factory import from_factory

BUNDLED = Path(__file__).resolve().parent.parent / "world" / "bundled"
BUNDLED_MODELS = {
    "llama": BUNDLED,
    **{name: BUNDLED / name for name in ("llama-again", "llama-shallow", "llama-narrow")},
}


@dataclass(frozen=True)
class LoadedModel:
    """A network and what is needed to use and to name it."""

    model: nn.Module
    source: str
    """As the user typed it."""
    tokenizer: Any = None
    folder: Path | None = None
    """Where its safetensors lie, if on this machine."""

    @property
    def context(self) -> int:
        """Longest sequence in tokens; 1024 where the model does not say."""
        config = getattr(self.model, "config", None)
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024)

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
        raise BadInput(f"--weights goes with a factory (package.module:function), but the model is {source!r}.")
    folder = local_folder(source)
    place = str(folder) if folder is not None else source
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if folder is not None and not allow_pickle:
        _check_safetensors(folder)
    from transformers import AutoTokenizer

    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "use_safetensors": None if allow_pickle else True,
    }
    options["dtype"] = (torch.float32 if target == "cpu" else "auto") if dtype == "auto" else dtype_named(dtype)
    if four_bit:
        options["quantization_config"] = _nf4(options["dtype"])
    try:
        model, found = _model_class(place, trust_remote_code).from_pretrained(
            place, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise BadInput(
            f"cannot load model {source!r}: {_first_line(error)} Expected a hub id that is reachable or cached, a "
            f"folder with config.json and safetensors, bundled:{'|'.join(BUNDLED_MODELS)}, or package.module:factory."
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise BadInput(
            f"the checkpoint of {source!r} lacks {len(missing)} tensors that its configuration asks for "
            f"({', '.join(missing[:3])}) and that would be random; give a complete checkpoint of this architecture."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError):  # a vision model, or a folder without one
        tokenizer = None
    if not four_bit:
        model = model.to(target)
    return LoadedModel(model.eval(), source, tokenizer, folder)


def load_shape(source: str, *, trust_remote_code: bool = False) -> nn.Module:
    """The network without its weights, on the meta device: enough to list layers of a model of any size."""
    if is_factory(source):
        with torch.device("meta"):
            return from_factory(source)
    from transformers import AutoConfig

    folder = local_folder(source)
    place = str(folder) if folder is not None else source
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
        made = _model_class(place, trust_remote_code)
        with torch.device("meta"):
            model = made.from_config(config, trust_remote_code=True) if hasattr(made, "from_config") else made(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read the configuration of {source!r}: {_first_line(error)}") from error
    return model.eval()


def is_factory(source: str) -> bool:
    """Whether a source is package.module:function."""
    return ":" in source and not source.startswith("bundled:") and not Path(source).exists()


def local_folder(source: str) -> Path | None:
    """The folder on this machine that a source names; None for a hub id.

    Raises:
        UnknownName: for a bundled name that does not exist.
        BadInput: for a path at which there is no folder.
    """
    kind, _, name = source.partition(":")
    if kind == "bundled":
        if name not in BUNDLED_MODELS:
            raise UnknownName("bundled model", name, BUNDLED_MODELS)
        return BUNDLED_MODELS[name]
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise BadInput(
            f"no folder {source!r}; give a checkpoint folder as save_pretrained writes it, or a hub id like 'org/name'."
        )
    return None


def _check_safetensors(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise BadInput(f"{folder} is a LoRA adapter, not a model; give its base model, and the adapter as --tuned.")
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json, so it is no Hugging Face checkpoint folder.")
    if not any(folder.glob("*.safetensors")):
        refuse_pickles(folder.glob("*"))
        raise BadInput(f"{folder} has no .safetensors file; give the folder that save_pretrained wrote.")


def _model_class(place: str, trust_remote_code: bool) -> Any:
    """The class of the architecture a configuration names, its head included; an Auto class for remote code."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, architecture, None) or transformers.AutoModelForCausalLM


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


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0].rstrip(".") + "."
