"""peft: `adapter_config.json`, and the same as a LoraConfig, verified by peft on the model itself.

How peft matches (huggingface/peft, src/peft/tuners/tuners_utils.py, check_target_module_exists and _inject_parameters;
src/peft/utils/other.py, get_pattern_key): a list of `target_modules` matches whole names and endings of names after a
dot, passes over names it does not find, and takes an empty list of blocks for all; a string is a regular expression for
the whole name. `target_parameters` are matched like a list; keys of `rank_pattern` are expressions for the end of a
name, and the first that matches counts.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from keylayers.exports.lora import adapters_by_peft, lora_words, nearest_matrices
from keylayers.exports.target import Adapter, CannotExpress, ExportSettings, Target
from keylayers.files import reason
from keylayers.files.atomic import scratch_folder
from keylayers.scores.selection import Selection
from keylayers.training.adapters import LoraSettings, lora_config, whole

if TYPE_CHECKING:
    from peft import LoraConfig

FILE = "adapter_config.json"


def to_lora_config(model: nn.Module, selection: Selection, settings: ExportSettings | None = None) -> "LoraConfig":
    """A LoraConfig that names exactly the selected layers, for get_peft_model; `export` also verifies that.

    Raises:
        CannotExpress: for layers that are no weight matrix (blocks, sublayers, single experts).
    """
    settings = settings or ExportSettings()
    lora_words(model, selection, settings)  # refuses what LoRA has no words for
    lora = LoraSettings(settings.rank, whole(settings.alpha))
    return lora_config(model, selection.chosen, lora, settings.ranks)


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """The LoraConfig as peft stores it; sets as sorted lists, so that equal selections give equal files."""
    config = to_lora_config(model, selection, settings)
    config.base_model_name_or_path = settings.model
    return {FILE: json.dumps(_plain(config.to_dict()), indent=2, sort_keys=True) + "\n"}


def adapters(model: nn.Module, files: Mapping[str, str]) -> dict[str, Adapter]:
    """What peft attaches when it loads the folder and is given the model."""
    from peft import LoraConfig

    with scratch_folder() as folder:
        (folder / FILE).write_text(files[FILE], encoding="utf-8")
        try:
            config = LoraConfig.from_pretrained(str(folder))
        except Exception as error:
            raise CannotExpress(f"peft cannot read {FILE}: {reason(error)}.") from error
    return adapters_by_peft(model, config)


def _plain(value: Any) -> Any:
    """The value with sets as sorted lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


TARGET = Target(
    name="peft",
    unit="layers",
    render=render,
    read_back=lambda model, files: set(adapters(model, files)),
    nearest=nearest_matrices,
    usage="get_peft_model(model, LoraConfig.from_pretrained(FOLDER)), FOLDER being where adapter_config.json lies",
    adapters=adapters,
)
