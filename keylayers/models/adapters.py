"""Stored LoRA adapters: put on the base for a moment, each tensor of the file accounted for or refused by name."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.files import check_regular, explained
from keylayers.layers.adapted import changes_of_adapter, check_plain, logical_shapes
from keylayers.layers.adapter_undo import restored
from keylayers.layers.deltas import Delta, Deltas, grouped, held_delta
from keylayers.layers.layer import Layer
from keylayers.layers.model_versions import alike, change_of
from keylayers.layers.structure import canonical_name, is_packed, tensors_of, unwrap, walk
from keylayers.layers.tensors import refuse_pickles, unpickled

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LOADED = ("lora_", ".modules_to_save.", ".trainable_tokens_delta.")
"""Marks of the tensors that peft puts into a network and means to load."""
_MERGE = "merge it where it was trained (peft's merge_and_unload, then save_pretrained) and give that checkpoint"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, its configuration at least."""
    return (folder / CONFIG).is_file()


def adapters_within(folder: Path) -> list[str]:
    """Adapters in the folders right inside a folder, which is how peft writes a model that carries several."""
    return sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}"))


def deltas_of_adapter(base: nn.Module, folder: Path, layers: Sequence[Layer], *, allow_pickle: bool = False) -> Deltas:
    """Deltas of a stored peft adapter; the base is then as it was, and none of its tensors is ever written.

    Raises:
        BadInput: if it is no LoRA or does more than add to weights, holds a tensor that would be lost or lacks one, was
            trained on another base, or changes nothing.
    """
    config, state = _config(folder), _state(folder, allow_pickle)
    biases, config.bias = getattr(config, "bias", "none"), "none"  # peft would load them into the base
    trained_on = str(getattr(config, "base_model_name_or_path", None) or "")
    problem, remedy = f"adapter {folder} does not fit the base model", "give the base that it was trained on"
    with restored(base), torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws before it loads
        warnings.simplefilter("ignore")
        from peft import get_peft_model, set_peft_model_state_dict

        with explained(problem, remedy):
            adapted = get_peft_model(unwrap(base), config)  # type: ignore[arg-type]
        beside = _beside(adapted, state)
        added = {name: tensor for name, tensor in state.items() if name not in beside}
        with explained(problem, remedy):
            try:
                loaded = set_peft_model_state_dict(adapted, added)
            except RuntimeError as error:
                raise _sizes(problem, str(error), remedy) or error from error
        _check_complete(folder, adapted, loaded)
        precisions = {canonical_name(name): tensor.dtype for name, tensor in state.items()}
        found = changes_of_adapter(adapted, "default", precisions)
        found |= _biases(folder, base, biases, {canonical_name(name): state[name] for name in beside})
        shapes = logical_shapes(adapted)
    return grouped(found, layers, shapes, source=f"LoRA adapter {folder}", notes=_notes(base, folder, trained_on))


def _config(folder: Path) -> Any:
    """peft's configuration, of a plain LoRA. Raises BadInput."""
    from peft import LoraConfig, PeftConfig

    with explained(f"{folder / CONFIG} is no configuration of an adapter that peft knows"):
        check_regular(folder / CONFIG)
        config = PeftConfig.from_pretrained(str(folder))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning:
        raise BadInput(f"adapter {folder} is {kind}, which adds virtual tokens and changes no layer; give a LoRA.")
    if not isinstance(config, LoraConfig) or kind != "LORA":
        raise BadInput(f"adapter {folder} is {kind}, and only LORA is read as it is", _MERGE)
    check_plain(config, f"adapter {folder}")
    config.inference_mode, config.init_lora_weights = True, True  # everything is loaded: no start is computed
    return config


def _state(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).is_file():
        pickle = (folder / WEIGHTS).with_suffix(".bin")
        if allow_pickle and pickle.is_file():
            return unpickled(pickle)
        refuse_pickles(folder.glob("*") if not allow_pickle else [])
        raise BadInput(f"adapter {folder} has no {WEIGHTS}; give the folder that save_pretrained wrote.")
    with explained(f"{folder / WEIGHTS} is not a whole safetensors file", "copy it again"):
        return load_file(check_regular(folder / WEIGHTS))


def _beside(adapted: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Tensors of the file that are the base's own: biases, and embeddings that peft stores beside an adapted head."""
    from peft.utils import ModulesToSaveWrapper

    saved = tuple(f"{node.name}." for node in walk(adapted) if isinstance(node.module, ModulesToSaveWrapper))
    own = tensors_of(adapted)
    return {
        name for name in state if (place := canonical_name(name)) in own and not (saved and place.startswith(saved))
    }


def _sizes(problem: str, text: str, remedy: str) -> BadInput | None:
    """torch's list of tensors of other sizes in one line, if that is what it says."""
    pattern = r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)"
    if not (sizes := re.findall(pattern, text)):
        return None
    name, stored, wanted = sizes[0]
    first = f"{canonical_name(name)}, which is {stored} and would have to be {wanted}"
    return BadInput(f"{problem}: {len(sizes)} of its tensors are of other sizes, first {first}", remedy)


def _check_complete(folder: Path, adapted: nn.Module, loaded: Any) -> None:
    """Raises BadInput for tensors that found no place, which would be lost, and for places left as they were drawn."""
    if lost := sorted(loaded.unexpected_keys):
        raise BadInput(
            f"adapter {folder} holds {len(lost)} tensors that have no place in the base model as {CONFIG} says, first "
            f"{canonical_name(lost[0])}: they would be lost",
            _MERGE,
        )
    state = {key: id(value) for key, value in adapted.state_dict(keep_vars=True).items()}
    filled = {state[key] for key in state.keys() - set(loaded.missing_keys)}  # a tied head follows the embedding's
    marked = (key for key in loaded.missing_keys if any(mark in key for mark in _LOADED))
    if lacking := sorted(key for key in marked if state.get(key) not in filled):
        raise BadInput(
            f"adapter {folder} lacks {len(lacking)} tensors that {CONFIG} asks for in this base model, first "
            f"{canonical_name(lacking[0])}; give a whole adapter, or the base that it was trained on."
        )


def _biases(folder: Path, base: nn.Module, trained: str, stored: Mapping[str, Tensor]) -> dict[str, Delta]:
    """Changes of the biases that were trained; all else that is stored of the base has to be the base's.

    Raises:
        BadInput: if it is another's, as where the base is another or its vocabulary was changed.
    """
    own, changes = tensors_of(base), dict[str, Delta]()
    for name, tensor in stored.items():
        value = own[name].detach()
        if is_packed(value) or (value.shape == tensor.shape and torch.equal(*alike(value, tensor))):
            continue
        if value.shape == tensor.shape and trained != "none" and name.endswith("bias"):
            changes[name] = held_delta(change_of(value, tensor))
            continue
        sizes = f" ({tuple(tensor.shape)} instead of {tuple(value.shape)})" if value.shape != tensor.shape else ""
        raise BadInput(
            f"adapter {folder} holds another {name} than the base model{sizes}: it was trained on another base, or "
            "trained that too",
            _MERGE,
        )
    return changes


def _notes(base: nn.Module, folder: Path, trained_on: str) -> tuple[str, ...]:
    """That the adapter names another base, which may be the same one under another name."""
    given = str(getattr(getattr(unwrap(base), "config", None), "_name_or_path", "") or "")
    if not trained_on or not given or PurePath(trained_on).name == PurePath(given).name:
        return ()
    return (f"adapter {folder} says that it was trained on {trained_on}; here its base is {given}",)
