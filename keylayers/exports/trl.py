"""TRL: YAML for `trl sft --config`, read back by TRL's own parser and turned into a LoraConfig by TRL itself.

Its fields are those of ModelConfig (huggingface/trl, trl/trainer/model_config.py); get_peft_config
(trl/trainer/utils.py) hands them to peft. A list of one module becomes a string there, and a string is a regular
expression to peft: a lone `q_proj` matches nothing, and in mixtures of experts peft reduces an expression to endings of
names, which match in every block. A name written twice stays a list. All layers have one rank.
"""

from collections.abc import Mapping

from torch import nn

from keylayers.exports.loaded import require_loadable
from keylayers.exports.lora import adapters_by_peft, lora_words, nearest_matrices, one_rank
from keylayers.exports.target import Adapter, CannotExpress, ExportSettings, Target
from keylayers.exports.yaml_format import yaml_text
from keylayers.files import reason
from keylayers.files.atomic import scratch_folder
from keylayers.scores.selection import Selection
from keylayers.training.adapters import whole

FILE = "trl.yaml"
TWICE = "trl takes a list of one name for a regular expression; written twice it stays a name"


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """ModelConfig's LoRA fields as YAML."""
    require_loadable(model, "trl", generates=True)
    words = lora_words(model, selection, settings)
    one_rank(words, "trl")
    modules, notes = list(words.names.modules), list[str]()
    if words.names.endings:
        modules = [words.names.pattern]  # a list of one, which trl hands on as an expression
    elif len(modules) == 1:
        modules, notes = modules * 2, [TWICE]
    values = {
        "model_name_or_path": settings.model,
        "use_peft": True,
        "lora_r": settings.rank,
        "lora_alpha": whole(settings.alpha),
        "lora_dropout": 0.0,
        "lora_target_modules": modules,
    }
    if words.names.tensors:
        values["lora_target_parameters"] = list(words.names.tensors)
    return {FILE: yaml_text(values, selection, notes)}


def adapters(model: nn.Module, files: Mapping[str, str]) -> dict[str, Adapter]:
    """What peft attaches for the configuration that TRL makes of the file."""
    from trl import ModelConfig, TrlParser, get_peft_config

    with scratch_folder() as folder:
        path = folder / FILE
        path.write_text(files[FILE], encoding="utf-8")
        try:
            parser = TrlParser(ModelConfig)  # type: ignore[arg-type]  # a dataclass
            (arguments,) = parser.parse_args_and_config(["--config", str(path)])
            config = get_peft_config(arguments)
        except (Exception, SystemExit) as error:  # its parser of arguments exits
            raise CannotExpress(f"trl cannot read {FILE}: {reason(error)}.") from error
    return {} if config is None else adapters_by_peft(model, config)


TARGET = Target(
    name="trl",
    unit="layers",
    render=render,
    read_back=lambda model, files: set(adapters(model, files)),
    nearest=nearest_matrices,
    usage="trl sft --config trl.yaml --dataset_name DATA --output_dir OUT (or any other `trl` trainer)",
    adapters=adapters,
)
