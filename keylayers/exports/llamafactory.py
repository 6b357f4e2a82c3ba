"""LLaMA-Factory: YAML with lora_target, the full names joined by commas.

The rule is restated from hiyouga/LLaMA-Factory, src/llamafactory/hparams/finetuning_args.py (split_arg) and
src/llamafactory/model/adapter.py (_setup_lora_tuning): the text is split at commas and handed to peft as a list, which
matches whole names and endings of names; `all` alone stands for every linear module but the head
(model_utils/misc.py). No field reaches target_parameters, so fused experts and routers cannot be named, and all layers
have one rank. Models of several modalities go through a table of its own (model_utils/visual.py) that also matches
parts of names; these are refused here. Full fine-tuning takes the first or last n blocks alone, so it has no export.
"""

from collections.abc import Mapping

from torch import nn

from keylayers.exports.loaded import require_loadable
from keylayers.exports.lora import (
    adapters_by_peft,
    lora_words,
    loraconfig,
    mapping_of,
    nearest_matrices,
    one_rank,
    without,
)
from keylayers.exports.target import Adapter, CannotExpress, ExportSettings, Target
from keylayers.exports.yaml_format import yaml_text
from keylayers.layers.structure import unwrap
from keylayers.scores.selection import Selection
from keylayers.training.adapters import whole
from keylayers.training.lora_names import name_for_peft

FILE = "llamafactory.yaml"


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """The LoRA part of a LLaMA-Factory configuration."""
    require_loadable(model, "LLaMA-Factory", generates=True)
    if modalities := sorted(getattr(unwrap(model).config, "sub_configs", None) or ()):
        raise CannotExpress(
            f"LLaMA-Factory chooses layers of models with {', '.join(modalities)} by a table of its own, which matches "
            "parts of names."
        )
    words = lora_words(model, selection, settings)
    one_rank(words, "LLaMA-Factory")
    names = words.names
    if names.tensors:
        raise CannotExpress(
            f"LLaMA-Factory has no field for peft's target_parameters, by which {len(names.tensors)} of the "
            f"{len(selection)} selected layers are named, first {names.tensors[0]!r}."
        )
    if names.endings:
        raise CannotExpress(
            f"LLaMA-Factory matches endings of names, and other layers' names end with {names.endings[0]!r}."
        )
    values = {
        "model_name_or_path": settings.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": settings.rank,
        "lora_alpha": whole(settings.alpha),
        "lora_dropout": 0.0,
        "lora_target": ",".join(names.modules),
    }
    return {FILE: yaml_text(values, selection, ["merge into your configuration: dataset, template, output_dir"])}


def adapters(model: nn.Module, files: Mapping[str, str]) -> dict[str, Adapter]:
    """What peft attaches for the arguments that LLaMA-Factory makes of the file."""
    given = mapping_of(files, FILE)
    if given.get("finetuning_type", "lora") != "lora":
        return {}
    target = given.get("lora_target", "all")
    names = [name.strip() for name in target.split(",")] if isinstance(target, str) else list(target)
    rank = given.get("lora_rank", 8)
    config = loraconfig(
        r=rank,
        lora_alpha=given.get("lora_alpha") or rank * 2,
        lora_dropout=given.get("lora_dropout", 0.0),
        target_modules=_every_linear(model) if names == ["all"] else names,
        modules_to_save=given.get("additional_target"),
        task_type="CAUSAL_LM",
        inference_mode=False,
    )
    return adapters_by_peft(model, config)


def _every_linear(model: nn.Module) -> list[str]:
    """What `all` stands for: last parts of the names of all modules with a linear class's name, bar the head."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in unwrap(model).named_modules()
            if "lm_head" not in name and "Linear" in type(module).__name__ and "Embedding" not in type(module).__name__
        }
    )


def nearest(model: nn.Module, selection: Selection) -> Selection | None:
    """The matrices that are modules, without names that other layers' names end with."""
    matrices = nearest_matrices(model, selection, tensors=False)
    if matrices is None:
        return None
    endings = set(name_for_peft(model, matrices.chosen).endings)
    return without(model, matrices, endings) if endings else matrices


TARGET = Target(
    name="llamafactory",
    unit="layers",
    render=render,
    read_back=lambda model, files: set(adapters(model, files)),
    nearest=nearest,
    usage="merge llamafactory.yaml into your configuration, then: llamafactory-cli train CONFIG",
    adapters=adapters,
)
