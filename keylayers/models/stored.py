"""The weights of a checkpoint by the names its model gives them, read one at a time: the model is never built."""

from collections import defaultdict
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keylayers.files import explained
from keylayers.layers.structure import first_names, parameters_of, unwrap
from keylayers.layers.tensors import TensorSource, tensors_on_disk
from keylayers.models.loading import LoadedModel, load_shape
from keylayers.models.sources import local_folder

Sources = dict[str, list[str]]
"""Pattern of a conversion -> the stored names that it matched, in the order of their numbers."""


def stored_weights(
    source: str, *, weights: str | None = None, trust_remote_code: bool = False
) -> tuple[LoadedModel, TensorSource] | None:
    """The model's shape, on the meta device, and its tensors on disk under its own names; None if they do not stream.

    `source` is a folder, a hub id (its safetensors are fetched or taken from the cache), `bundled:NAME`, or
    package.module:factory with `weights`, a safetensors file. Experts stored one by one are `name[3]`. Where the
    checkpoint's names cannot be told from the model's, the answer is None, and the model has to be loaded.

    Raises:
        BadInput: for a source without safetensors.
    """
    shape = load_shape(source, trust_remote_code=trust_remote_code)
    if not hasattr(shape, "config"):
        named = None if weights is None else tensors_on_disk(weights)
        loaded = LoadedModel(shape, source)
    else:
        folder = local_folder(source) or fetched(source)
        named = _by_model_names(shape, tensors_on_disk(folder))
        loaded = LoadedModel(shape, source, folder=folder)
    if named is None:
        return None
    named = _with_tied(shape, named)
    return (loaded, named) if _complete(shape, named) else None


def fetched(source: str) -> Path:
    """The safetensors and configuration of a hub id, from the cache if they are there. Raises BadInput."""
    from huggingface_hub import snapshot_download

    remedy = "give a hub id that is reachable or cached, or a checkpoint folder"
    with explained(f"cannot find the weights of {source!r}", remedy):
        return Path(snapshot_download(source, allow_patterns=["model*.safetensors", "*.json"]))


def _complete(shape: nn.Module, named: TensorSource) -> bool:
    """Whether every parameter is there in its shape, as a whole or expert by expert."""
    return all(
        named.shapes.get(name) == tuple(parameter.shape)
        or all(named.shapes.get(f"{name}[{place}]") == tuple(parameter.shape[1:]) for place in range(len(parameter)))
        for name, parameter in parameters_of(shape).items()
        if parameter.ndim
    )


def _by_model_names(shape: nn.Module, stored: TensorSource) -> TensorSource | None:
    """The stored tensors under the model's names, by the renaming and conversion rules that transformers loads with."""
    if first_names(shape).keys() <= stored.keys():
        return stored
    try:
        return _renamed(unwrap(shape), stored)
    except (ImportError, AttributeError, TypeError):  # the rules are internal to transformers, and may move
        return None


def places_of(shape: nn.Module, stored: TensorSource) -> dict[str, str]:
    """Stored name -> the parameter of the model that it becomes, or is a part of: `name[3]` for what is of one expert.

    A name that transformers would not rename is its own place.
    """
    try:
        plain, converted, by_pattern = _matched(unwrap(shape), stored)
    except (ImportError, AttributeError, TypeError):  # as for `_by_model_names`
        return {name: name for name in stored}
    places = {name: target for target, name in plain.items()}
    for target, sources in converted.items():
        rule = by_pattern[next(iter(sources))]
        for place, parts in _steps(rule, target, sources):
            places |= {name: place for names in parts.values() for name in names}
    return {name: places.get(name, name) for name in stored}


def _matched(model: Any, stored: TensorSource) -> tuple[dict[str, str], dict[str, Sources], dict[str, Any]]:
    """Model's name -> the stored one that it is; model's name -> the stored ones it is made of; pattern -> its rule."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    expected = model.state_dict()
    rules: list[Any] = get_model_conversion_mapping(model)
    conversions = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in conversions for pattern in rule.source_patterns}
    plain: dict[str, str] = {}
    converted: dict[str, Sources] = defaultdict(lambda: defaultdict(list))
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, conversions, model.base_model_prefix, expected)
        if target not in expected and name in expected:
            target, pattern = name, None
        if pattern is None:
            plain[target] = name
        elif target in expected:
            converted[target][pattern].append(name)
    return plain, converted, by_pattern


def _renamed(model: Any, stored: TensorSource) -> TensorSource:
    expected = model.state_dict()
    plain, converted, by_pattern = _matched(model, stored)
    loaders: dict[str, Callable[[], Tensor]] = {target: stored[name] for target, name in plain.items()}
    shapes: dict[str, tuple[int, ...]] = {target: stored.shapes[name] for target, name in plain.items()}
    for target, sources in converted.items():
        rule = by_pattern[next(iter(sources))]
        for place, parts in _steps(rule, target, sources):
            loaders[place] = _conversion(rule, model, target, stored, parts, squeezed=place != target)
            shapes[place] = tuple(expected[target].shape)[1 if place != target else 0 :]
    return TensorSource(loaders, shapes, stored.origin, stored.counters)


def _steps(rule: Any, target: str, sources: Sources) -> list[tuple[str, Sources]]:
    """Name -> stored names it is made of: one expert at a time where the rule begins by stacking them."""
    counts = {len(names) for names in sources.values()}
    if type(rule.operations[0]).__name__ != "MergeModulelist" or len(counts) != 1:
        return [(target, sources)]
    return [
        (f"{target}[{expert}]", {pattern: [names[expert]] for pattern, names in sources.items()})
        for expert in range(counts.pop())
    ]


def _conversion(
    rule: Any, model: Any, target: str, stored: TensorSource, parts: Sources, *, squeezed: bool
) -> Callable[[], Tensor]:
    def load() -> Tensor:
        fresh = copy(rule)  # a rule collects what it converts
        fresh.collected_tensors = defaultdict(list)
        for pattern, names in parts.items():
            for name in names:
                fresh.add_tensor(target, name, pattern, stored[name])
        made = fresh.convert(target, model=model, config=model.config)[target]
        made = made[0] if isinstance(made, list) else made
        return made[0] if squeezed else made

    return load


def _with_tied(shape: nn.Module, named: TensorSource) -> TensorSource:
    """Each tied tensor under all its names, whichever of them the checkpoint stores."""
    places = defaultdict(list)
    for name, owner in first_names(shape).items():
        places[owner].append(name)
    loaders, shapes = dict(named), dict(named.shapes)
    for names in places.values():
        present = next((name for name in names if name in named), None)
        if present is not None:
            loaders |= {name: named[present] for name in names if name not in named}
            shapes |= {name: named.shapes[present] for name in names if name not in named}
    return TensorSource(loaders, shapes, named.origin, named.counters)
