"""What of a stranger's model may run: nothing, unless the user says so. Classes, configurations and tokenizers of
transformers come from here alone.

A configuration names Python files (`auto_map`), a class of transformers, kernels to fetch; it is taken for what it says
of shapes. Nothing here ever asks: whoever runs a command over night is not there to answer.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput
from keylayers.files import check_folder, explained
from keylayers.layers.tensors import INDEX, refuse_pickles, shard_names, shards
from keylayers.models.adapters import CONFIG as ADAPTER
from keylayers.models.adapters import is_adapter
from keylayers.models.sources import BUNDLED_MODELS

EXPECTED = (
    "give a hub id that is reachable or cached, a folder with config.json and safetensors, "
    f"bundled:{'|'.join(BUNDLED_MODELS)}, or package.module:factory"
)
MEND = "mend its config.json, or copy it again from where the model comes from"
TEMPLATES = "additional_chat_templates"
TOKENS = ("tokenizer", "vocab", "merges", "spiece", "spm", "sentencepiece", "tekken")
"""How the names of tokenizers' files begin."""
CODE = {"auto_map", "attn_implementation", "experts_implementation"}
"""Fields of a configuration that name code: Python files, and kernels that are fetched."""


@dataclass(frozen=True)
class Trust:
    """What the user lets strangers' files do."""

    remote_code: bool = False
    """Python files of the model may run."""
    pickles: bool = False
    """Weights may be pickles, which can run code when they are opened."""


def check_place(folder: Path, trust: Trust) -> None:
    """Raises BadInput unless the folder is a checkpoint that may be opened: safetensors, or pickles where allowed."""
    if is_adapter(folder):
        raise BadInput(
            f"{folder} is a LoRA adapter, not a model",
            "give its base model",
            "its base model and, as `tuned`, the adapter",
        )
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json, so it is no Hugging Face checkpoint folder.")
    check_folder(folder, within=(TEMPLATES,))
    if trust.pickles:
        return
    if not any(folder.glob("*.safetensors")):
        refuse_pickles(folder.glob("*"))
        raise BadInput(f"{folder} has no .safetensors file; give the folder that save_pretrained wrote.")
    if (folder / INDEX).is_file():
        refuse_pickles(Path(name) for name in shards(folder / INDEX))


def config_of(place: str, trust: Trust) -> Any:
    """The configuration of a folder or hub id; without `auto_map` and the like unless remote code is trusted.

    Raises:
        BadInput: if it cannot be read, or describes a model that only code of its own can build.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    if os.path.isdir(place):
        check_folder(place, within=(TEMPLATES,))
    with explained(f"cannot read the configuration of {place!r}", EXPECTED), never_asking():
        fields, _ = PreTrainedConfig.get_config_dict(place)
        if not trust.remote_code and fields.get("auto_map") and fields.get("model_type") not in CONFIG_MAPPING:
            raise _needs_code(place, fields["auto_map"])
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust.remote_code)
        return config if trust.remote_code else without_code(config)


def class_of(config: Any, place: str, trust: Trust) -> Any:
    """The class that a configuration names, its head included; of a causal language model where it names none.

    Raises:
        BadInput: for a name that is no model of transformers, unless code that is trusted defines it.
    """
    import transformers

    stated = getattr(config, "architectures", None)
    if not stated:
        return transformers.AutoModelForCausalLM
    name = stated[0] if isinstance(stated, list | tuple) else stated
    with explained(f"the architecture {name!r} of {place!r} cannot be had"):
        made = getattr(transformers, name, None) if isinstance(name, str) and not name.startswith("_") else None
        if _is_class(made, transformers.PreTrainedModel) and made is not transformers.PreTrainedModel:
            return made
    own = getattr(config, "auto_map", None)
    if trust.remote_code and isinstance(own, Mapping):
        autos = [auto for auto in ("AutoModelForCausalLM", *own) if auto in own and auto.startswith("AutoModel")]
        return getattr(transformers, autos[0] if autos else "AutoModelForCausalLM")
    raise BadInput(
        f"{place!r} names the architecture {name!r}, which is no model of transformers {transformers.__version__}",
        "name the class that its weights are of under 'architectures' in config.json",
        "allow code of its own with `trust_remote_code`",
    )


def build(made: Any, config: Any, place: str, trust: Trust) -> Any:
    """A network of the class, its weights as the current device makes them.

    Raises:
        BadInput: for a configuration that describes no network.
    """
    with explained(f"cannot build the model that the configuration of {place!r} describes", MEND), never_asking():
        if hasattr(made, "from_config"):
            return made.from_config(config, trust_remote_code=trust.remote_code)
        return made(_fitting(made, config, place, trust))


def load(made: Any, config: Any, place: str, trust: Trust, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """A network of the class with its weights, and what was missing or left over.

    Raises:
        BadInput: for weights that cannot be read or do not fit.
    """
    with explained(f"cannot load model {place!r}", EXPECTED), never_asking():
        if not trust.pickles and (stated := getattr(config, "transformers_weights", None)):
            refuse_pickles([Path(stated)])
        if not os.path.isdir(place):
            _check_hub(place, trust)
        return made.from_pretrained(
            place,
            config=_fitting(made, config, place, trust),
            output_loading_info=True,
            trust_remote_code=trust.remote_code,
            use_safetensors=None if trust.pickles else True,
            **options,
        )


def tokenizer_of(place: str, config: Any, trust: Trust) -> Any:
    """The tokenizer that comes with a model, or None if there is none.

    Raises:
        BadInput: for one that cannot be read, is no tokenizer, or is code of its own that is not trusted.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if os.path.isdir(place) and not any(name.startswith(TOKENS) for name in os.listdir(place)):
        return None
    with explained(f"cannot read the tokenizer of {place!r}"), never_asking():
        stated = get_tokenizer_config(place)
        for name in filter(None, (stated.get("tokenizer_class"), getattr(config, "tokenizer_class", None))):
            _check_tokenizer_class(name, place)
        tokenizer = AutoTokenizer.from_pretrained(place, config=config, trust_remote_code=trust.remote_code)
        if not trust.remote_code:
            tokenizer.init_kwargs.pop("auto_map", None)  # it would be stored with whatever is made of this model
        return tokenizer


def without_code(config: Any) -> Any:
    """The configuration, changed in place, without anything that names code, at any depth."""
    from transformers import PreTrainedConfig

    fields = vars(config) if isinstance(config, PreTrainedConfig) else config
    if isinstance(fields, dict):
        for name in list(fields):
            if str(name).lstrip("_").removesuffix("_internal") in CODE:
                fields[name] = None
        fields.pop("auto_map", None)
        fields = list(fields.values())
    for value in fields if isinstance(fields, list | tuple) else ():
        if isinstance(value, PreTrainedConfig | dict | list | tuple):
            without_code(value)
    return config


@contextmanager
def never_asking() -> Iterator[None]:
    """Inside, transformers refuses code that nobody allowed, where it would ask on the terminal."""
    from transformers import dynamic_module_utils as dynamic

    before, dynamic.TIME_OUT_REMOTE_CODE = dynamic.TIME_OUT_REMOTE_CODE, 0  # seconds it would wait for an answer
    try:
        yield
    finally:
        dynamic.TIME_OUT_REMOTE_CODE = before


def _check_hub(place: str, trust: Trust) -> None:
    """Raises BadInput for a repository of which transformers would load another's weights, or pickles."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if cached_file(place, ADAPTER, **quiet) is not None:
        raise BadInput(
            f"{place} is a LoRA adapter, not a model",
            "give its base model",
            "its base model and, as `tuned`, the adapter",
        )
    if not trust.pickles and (index := cached_file(place, INDEX, **quiet)) is not None:
        refuse_pickles(Path(name) for name in shard_names(Path(index)))


def _fitting(made: Any, config: Any, place: str, trust: Trust) -> Any:
    """The configuration for this class: that of the text alone, say, for a language model out of a larger one."""
    wanted = getattr(made, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    own = wanted.from_pretrained(place)
    return own if trust.remote_code else without_code(own)


def _check_tokenizer_class(name: object, place: str) -> None:
    import transformers

    if not isinstance(name, str):
        raise BadInput(f"the tokenizer class of {place!r} is {name!r}; expected the name of a class.")
    stem = name.removesuffix("Fast")  # transformers tries both
    for spelling in (name, stem, f"{stem}Fast"):
        made = getattr(transformers, spelling, None)
        if made is not None and not _is_class(made, transformers.PreTrainedTokenizerBase):
            raise BadInput(f"{place!r} names {name!r} as its tokenizer, which is no tokenizer of transformers.")


def _is_class(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _needs_code(place: str, own: object) -> BadInput:
    names = ", ".join(sorted(map(str, own.values()))) if isinstance(own, Mapping) else str(own)
    return BadInput(
        f"{place!r} needs code of its own ({names}), which runs only if you say so",
        "read it, then allow it with `trust_remote_code`",
    )
