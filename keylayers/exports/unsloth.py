"""unsloth: the arguments of FastLanguageModel.get_peft_model as JSON.

How they reach peft is restated from unslothai/unsloth, unsloth/models/loader.py (which class loads a model type),
llama.py and vision.py (get_peft_model) and _utils.py (get_moe_target_parameters). Two ways differ by model type. The
older one, of six model types, takes names beyond its seven as they are (and prints that it has no fast path for them),
takes a string apart into letters, drops layers_pattern and refuses arguments that LoraConfig has not. The newer one, of
all others, rewrites a list into an expression of its own, in which full names match nothing, unless all finetune_*
flags are on; FastLanguageModel turns the one for vision off unless told otherwise. Both add the experts of every block
for a bare `up_proj` or `down_proj` if target_parameters is not given, and pass ranks per layer on to peft.
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from keylayers.errors import BadInput
from keylayers.exports.loaded import require_loadable
from keylayers.exports.lora import adapters_by_peft, lora_words, loraconfig, nearest_matrices
from keylayers.exports.target import Adapter, CannotExpress, ExportSettings, Target
from keylayers.layers.structure import unwrap
from keylayers.scores.selection import Selection
from keylayers.training.adapters import whole

FILE = "unsloth.json"
OLDER_WAY = frozenset({"llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"})
"""Model types that FastLanguageModel loads by classes of its own; all others go through FastModel."""
FLAGS = {
    "finetune_vision_layers": False,
    "finetune_language_layers": True,
    "finetune_attention_modules": True,
    "finetune_mlp_modules": True,
}
"""What FastLanguageModel hands to the newer way where nothing is given."""


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """Keyword arguments that name exactly the selected layers."""
    require_loadable(model, "unsloth", generates=True)
    words = lora_words(model, selection, settings)
    older = _older_way(model)
    if older and words.names.endings:
        raise CannotExpress(
            f"unsloth takes no expression for {_type(model)}, and other layers' names end with "
            f"{words.names.endings[0]!r}."
        )
    values: dict[str, Any] = {
        "r": settings.rank,
        "lora_alpha": whole(settings.alpha),
        "lora_dropout": 0,
        "bias": "none",
        "target_modules": words.names.target_modules,
        "target_parameters": list(words.names.tensors),
    }
    if words.rank_pattern:
        values |= {"rank_pattern": words.rank_pattern, "alpha_pattern": words.alpha_pattern}
    if not older:
        values["finetune_vision_layers"] = True  # with all flags on, the list is taken as it is
    return {FILE: json.dumps(values, indent=2) + "\n"}


def adapters(model: nn.Module, files: Mapping[str, str]) -> dict[str, Adapter]:
    """What peft attaches for the LoraConfig that unsloth makes of the arguments, for a model of this type."""
    given = json.loads(files[FILE])
    if given.get("target_parameters") is None:
        raise CannotExpress("unsloth adds the experts of every block by itself unless target_parameters is given.")
    config = _older(given) if _older_way(model) else _newer(given)
    return adapters_by_peft(model, config)


def _older(given: Mapping[str, Any]) -> Any:
    """llama.py: each member of target_modules is a name, and what it does not know goes to LoraConfig."""
    passed = {name: value for name, value in given.items() if name not in ("target_modules", "layers_pattern")}
    return loraconfig(task_type="CAUSAL_LM", target_modules=list(given["target_modules"]), **passed)


def _newer(given: Mapping[str, Any]) -> Any:
    """vision.py: a list is taken as it is if no family of layers is left out; what LoraConfig has not is dropped."""
    from peft import LoraConfig

    off = [flag for flag, default in FLAGS.items() if not given.get(flag, default)]
    if off and not isinstance(given["target_modules"], str):
        raise CannotExpress(f"unsloth rewrites target_modules into an expression of its own while {off[0]} is off.")
    known = inspect.signature(LoraConfig).parameters
    return loraconfig(task_type="CAUSAL_LM", **{name: value for name, value in given.items() if name in known})


def _older_way(model: nn.Module) -> bool:
    return _type(model) in OLDER_WAY


def _type(model: nn.Module) -> str:
    config = getattr(unwrap(model), "config", None)
    if config is None:
        raise BadInput(f"{type(unwrap(model)).__name__} has no configuration, so unsloth cannot load it.")
    return str(config.model_type)


TARGET = Target(
    name="unsloth",
    unit="layers",
    render=render,
    read_back=lambda model, files: set(adapters(model, files)),
    nearest=nearest_matrices,
    usage="FastLanguageModel.get_peft_model(model, **json.load(open('unsloth.json'))), model by the same class",
    adapters=adapters,
)
