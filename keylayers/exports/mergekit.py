"""mergekit: a YAML that takes the selected layers exactly from the tuned model, the other scored ones from the base.

What no scored layer holds (norms, embeddings) comes from either, as `keylayers revert` does it: from the tuned unless
asked otherwise.

`mergekit-yaml merge.yaml OUT` with method `linear` and weights 1 and 0 per tensor copies exactly: 1 x + 0 y = x for
finite x and y (only a negative zero may lose its sign). The rule that reads a weight is restated from
arcee-ai/mergekit, mergekit/config.py (evaluate_setting) and mergekit/plan.py: the first entry whose `filter` is a
substring of the tensor's name counts, a list of numbers is interpolated over depth, and weights are divided by their
sum. task_arithmetic would give base + (tuned - base), which rounds; slices take whole blocks only.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from keylayers.exports.loaded import require_loadable
from keylayers.exports.lora import mapping_of, nearest_matrices
from keylayers.exports.stored import require_whole, stored_tensors
from keylayers.exports.target import CannotExpress, ExportSettings, Target, scored_tensors
from keylayers.exports.yaml_format import yaml_text
from keylayers.layers.blocks import find_blocks
from keylayers.layers.structure import parameters_of, unwrap
from keylayers.scores.selection import Selection

FILE = "mergekit.yaml"
_NUMBER = re.compile(r"\.(\d+)\.")


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """The merge as YAML. Raises CannotExpress for slices of tensors, and models that mergekit gets wrong."""
    _require_mergeable(model)
    require_whole(selection, "mergekit")
    if settings.model == settings.tuned:
        raise CannotExpress(f"base and tuned model are both called {settings.model!r}; mergekit needs two.")
    rest = stored_tensors(model) - scored_tensors(selection) if settings.remainder == "tuned" else set[str]()
    filters = _filters(stored_tensors(model), selection, rest)
    document = {
        "merge_method": "linear",
        "base_model": settings.model,
        "models": [
            {"model": settings.tuned, "parameters": {"weight": _weights(filters, chosen=1.0)}},
            {"model": settings.model, "parameters": {"weight": _weights(filters, chosen=0.0)}},
        ],
    }
    notes = [
        f"mergekit-yaml {FILE} OUT: exactly these layers from the tuned model, the other scored ones from the base",
        f"what no scored layer holds (norms, embeddings) from the {settings.remainder} model (`remainder`)",
    ]
    return {FILE: yaml_text(document, selection, notes)}


def read_back(model: nn.Module, files: Mapping[str, str]) -> set[str]:
    """Parameters that this merge takes from the model that is not the base.

    Raises:
        CannotExpress: if a tensor would be mixed from both, or would get no weight.
    """
    config = mapping_of(files, FILE)
    if config["merge_method"] != "linear":
        raise CannotExpress(f"merge_method {config['merge_method']!r} does not copy tensors exactly; linear does.")
    depths, parameters = _depths(model), parameters_of(model)
    found = set()
    for name in stored_tensors(model):
        shares = {True: 0.0, False: 0.0}
        for entry in config["models"]:
            settings = [(entry.get("parameters") or {}).get("weight"), (config.get("parameters") or {}).get("weight")]
            value = next((v for s in settings if (v := _value(s, name, depths.get(name, 0.0))) is not None), None)
            if value is None:
                raise CannotExpress(f"mergekit would stop at {name}: no weight for {entry['model']}.")
            shares[entry["model"] == config["base_model"]] += value
        if 0.0 not in shares.values() or sum(shares.values()) == 0:
            raise CannotExpress(f"{name} would be a mixture: {shares[False]:g} of tuned, {shares[True]:g} of base.")
        if shares[True] == 0 and name in parameters:
            found.add(name)
    return found


def _require_mergeable(model: nn.Module) -> None:
    """Raises CannotExpress for architectures that mergekit 0.1.5 got wrong when it was run on small ones."""
    require_loadable(model, "mergekit", generates=False)
    network: Any = unwrap(model)
    if not network.can_generate() or network.config.is_encoder_decoder:
        raise CannotExpress(
            f"mergekit knows causal language models by the tensors stored today, and {type(network).__name__} is none."
        )
    if network.config.model_type == "gpt_neox":
        raise CannotExpress("mergekit wants attention.bias in every block of GPT-NeoX; transformers stores none.")
    fused = {name: _NUMBER.sub(".*.", name, count=1) for name, value in parameters_of(model).items() if value.ndim == 3}
    blocks = len(find_blocks(model))
    if uneven := [name for name, kind in fused.items() if list(fused.values()).count(kind) < blocks]:
        # It takes them for optional, looks for them under names that no checkpoint has, and goes on without them.
        raise CannotExpress(f"mergekit drops {uneven[0]} without a word, since not every block has such experts.")


def _filters(stored: set[str], selection: Selection, rest: set[str]) -> list[tuple[str, bool]]:
    """(part of a name, whether tensors with it are tuned), in the order in which mergekit must try them.

    A layer's own name with a dot after it where that is safe. Where a name is part of another's (`down_proj` of
    `down_proj_bias`) and only one of them is tuned, full names, longest first, so that each finds itself first.
    """
    wanted = {name for layer in selection.chosen for name in layer.parameters} | rest
    texts = []
    for layer in selection.chosen:
        within = f"{layer.name}."
        reached = {name for name in stored if within in name}
        texts += [within] if reached == set(layer.parameters) else list(layer.parameters)
    texts += sorted(rest)
    caught = {name for name in stored - wanted if any(text in name for text in texts)}
    if caught:
        return [(name, name in wanted) for name in sorted(wanted | caught, key=lambda name: (-len(name), name))]
    return [(text, True) for text in texts]


def _weights(filters: Sequence[tuple[str, bool]], chosen: float) -> list[dict[str, Any]]:
    conditions = [{"filter": text, "value": chosen if tuned else 1 - chosen} for text, tuned in filters]
    return [*conditions, {"value": 1 - chosen}]


def _value(setting: Any, name: str, depth: float) -> float | None:
    """What a `weight:` setting says for one tensor; None where it says nothing."""
    if setting is None or isinstance(setting, int | float):
        return setting
    if isinstance(setting, Mapping):
        setting = [setting]
    if all(isinstance(one, int | float) for one in setting):
        place = depth * (len(setting) - 1)
        low = int(place)
        high = min(low + 1, len(setting) - 1)
        return (1 - (place - low)) * setting[low] + (place - low) * setting[high]
    for condition in setting:
        text = condition.get("filter")
        if text is None or text == "*" or text in name:
            return _value(condition["value"], name, depth)
    return None


def _depths(model: nn.Module) -> dict[str, float]:
    """Where each tensor of a block lies among the blocks of its stack, in [0, 1]; one lone block counts as 1."""
    places = {name: found for name in stored_tensors(model) if (found := _NUMBER.search(name))}
    last: dict[str, int] = {}
    for name, found in places.items():
        stack = name[: found.start()]
        last[stack] = max(last.get(stack, 0), int(found.group(1)))
    return {
        name: int(found.group(1)) / last[stack] if last[stack := name[: found.start()]] else 1.0
        for name, found in places.items()
    }


TARGET = Target(
    name="mergekit",
    unit="parameters",
    render=render,
    read_back=read_back,
    nearest=nearest_matrices,
    merges=True,
    usage=f"mergekit-yaml {FILE} OUT; both checkpoints need the same dtype and vocabulary.",
)
