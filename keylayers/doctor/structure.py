"""Gates that read a model without running it: names, ties, fused parts, finite weights, hooks."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from keylayers.doctor.guard import foreign_hooks
from keylayers.doctor.probe import CheckResult, ModelUnderTest, failed, layers_of, passed, some
from keylayers.layers.blocks import scalars
from keylayers.layers.layer import Layer
from keylayers.layers.structure import canonical_name, inner_module, logical_shape, parameters_of, tensors_of, unwrap

REPORT = "please report this architecture: the list of layers cannot be trusted"
FUSED = ("qkv", "query_key_value", "c_attn", "gate_up", "in_proj", "w12", "wi_fused")
"""Words in the names of projections that hold several in one matrix."""


def names(patient: ModelUnderTest) -> CheckResult:
    """Every weight matrix of a plain walk is in exactly one linear layer, under a name that leads to it."""
    model = patient.model
    listed = layers_of(model, "linear", tied=True)
    routers = {name for layer in layers_of(model, "router", tied=True) for name in layer.parameters}
    wanted, left_out, plain = _plain_walk(model, routers)
    held = Counter(name for layer in listed for name in layer.parameters if len(logical_shape(plain[name])) >= 2)
    wrong = [f"{name} is in no linear layer" for name in wanted if name not in held]
    wrong += [f"{name} is listed, though it is no weight matrix" for name in held if name not in wanted | left_out]
    wrong += [f"{name} is in {count} layers" for name, count in held.items() if count > 1]
    wrong += [
        f"{name} leads to another tensor" for name, value in parameters_of(model).items() if plain[name] is not value
    ]
    wrong += _wrong_counts(patient.blocks, listed, wanted, plain)
    if wrong:
        return failed(f"the list of layers differs from a plain walk: {some(wrong)}", REPORT)
    inside = Counter(layer.block for layer in listed if layer.block is not None)
    each = "/".join(str(count) for count in sorted(set(inside.values())))
    others = sorted(left_out - held.keys())
    return passed(
        f"{len(listed)} linear layers, {each or 0} in each of {len(patient.blocks)} blocks and "
        f"{len(listed) - sum(inside.values())} outside; a plain walk finds the same {len(wanted)} weights"
        + (f"; {len(routers)} router weights apart" if routers else "")
        + (f"; of two or more dimensions but no matrices: {some(others)}" if others else "")
    )


def _plain_walk(model: nn.Module, routers: set[str]) -> tuple[set[str], set[str], dict[str, Tensor]]:
    """Names of weight matrices and expert tensors; of other tensors of 2 or more dimensions; every parameter."""
    wanted, left_out, plain = set[str](), set[str](), dict[str, Tensor]()
    for place, module in unwrap(model).named_modules(remove_duplicate=False):
        for key, value in module.named_parameters(recurse=False, remove_duplicate=False):
            name, dimensions = canonical_name(f"{place}.{key}".removeprefix(".")), len(logical_shape(value))
            if "lora_" in place or "lora_" in key:
                continue
            plain[name] = value
            if isinstance(module, nn.Embedding | _ConvNd) or name in routers or dimensions < 2:
                continue
            is_matrix = (dimensions == 2 and key == "weight") or (dimensions == 3 and value.shape[0] > 1)
            (wanted if is_matrix else left_out).add(name)
    return wanted, left_out, plain


def _wrong_counts(
    blocks: tuple[str, ...], listed: tuple[Layer, ...], wanted: set[str], plain: dict[str, Tensor]
) -> list[str]:
    """Blocks whose number of layers, and layers whose size, differs from what the walk counts."""
    wrong = []
    for index, block in enumerate(blocks):
        here, there = sum(layer.block == index for layer in listed), sum(n.startswith(f"{block}.") for n in wanted)
        if here != there:
            wrong.append(f"{block} has {there} weights but {here} layers")
    for layer in listed:
        if layer.size != sum(scalars(plain[name]) for name in layer.parameters):
            wrong.append(f"{layer.name} is said to hold {layer.size:,} scalars")
    return wrong


def tied_weights(patient: ModelUnderTest) -> CheckResult:
    """Weights that the model declares tied are one tensor in memory, and no others are."""
    present, root = parameters_of(patient.model), inner_module(unwrap(patient.model))
    declared = _declared_ties(root, present)
    apart = [(alias, source) for alias, source in declared.items() if present[alias] is not present[source]]
    if apart:
        alias, source = apart[0]
        same = present[alias].shape == present[source].shape and torch.equal(present[alias], present[source])
        state = "with equal values" if same else "with different values"
        return failed(
            f"{alias} is declared tied to {source} (tie_word_embeddings={_says_tied(root)}), but memory holds two "
            f"tensors, {state}: training changes one of them, and a saved checkpoint stores one",
            "call model.tie_weights(), or set config.tie_word_embeddings=False and save the model so",
        )
    groups: dict[int, list[str]] = {}
    for name, value in present.items():
        groups.setdefault(id(value), []).append(name)
    shared = [group for group in groups.values() if len(group) > 1]
    known = set(declared) | set(declared.values())
    undeclared = [group for group in shared if not set(group) <= known]
    if undeclared and hasattr(root, "config"):
        first = undeclared[0]
        return failed(
            f"{' and '.join(first[:3])} are one tensor, and nothing declares it: training one trains the other, and "
            f"only the first is listed ({len(undeclared)} such tensors)",
            "give each its own copy (module.weight = nn.Parameter(module.weight.clone())), or replace the module "
            "that was put in twice",
        )
    if not shared:
        return passed("none declared, none in memory: every weight can be selected by itself")
    heads = sorted(layer.name for layer in layers_of(patient.model, "linear", tied=True) if layer.tied_to)
    told = "as declared" if not undeclared else "which a network of this sort cannot declare"
    return passed(
        f"{'; '.join(' = '.join(group) for group in shared[:3])}: one tensor, {told}; "
        f"training one trains all, so {some(heads) or 'no linear layer'} is left out of the list that is scored"
    )


def _says_tied(root: Any) -> bool | None:
    config: Any = getattr(root, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "tie_word_embeddings", None)


def _declared_ties(root: Any, present: dict[str, nn.Parameter]) -> dict[str, str]:
    """Alias -> source, as the configuration and transformers' own table say; only where both are there."""
    told: Any = getattr(root, "all_tied_weights_keys", None)
    pairs = dict(told) if isinstance(told, dict) else {}
    if _says_tied(root) and not pairs and hasattr(root, "get_output_embeddings"):
        head, embeddings = root.get_output_embeddings(), root.get_input_embeddings()
        spots = {id(module): name for name, module in root.named_modules()}
        if head is not None and id(head) in spots and id(embeddings) in spots:
            pairs = {f"{spots[id(head)]}.weight": f"{spots[id(embeddings)]}.weight"}
    return {alias: source for alias, source in pairs.items() if alias in present and source in present}


def fused_parts(patient: ModelUnderTest) -> CheckResult:
    """Several projections in one matrix, or all experts in one tensor: found, and what that means."""
    listed = layers_of(patient.model, "linear", tied=True)
    experts = [layer for layer in listed if layer.name in layer.parameters]
    fused = [layer for layer in listed if layer not in experts and any(word in layer.kind for word in FUSED)]
    parts = []
    for group, meaning in (
        (fused, "several projections in one matrix, selected together or not at all"),
        (experts, "all experts in one tensor, adapted by LoRA through target_parameters"),
    ):
        if group:
            kinds = sorted({layer.kind for layer in group})
            parts.append(f"{some(kinds)} ({len(group)} layers): {meaning}")
    return passed("; ".join(parts) or "none: every projection is a layer of its own")


def finite_weights(patient: ModelUnderTest) -> CheckResult:
    """No weight, and no lasting buffer, is NaN or infinite."""
    patient.probe()
    tensors = {name: value for name, value in tensors_of(patient.model).items() if value.is_floating_point()}
    bad = {name: int((~torch.isfinite(value)).sum()) for name, value in tensors.items()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        return failed(
            f"{len(bad)} of {len(tensors)} tensors hold numbers that are not finite: "
            + some([f"{name} ({count:,} of {tensors[name].numel():,})" for name, count in bad.items()]),
            "load an intact checkpoint; if training made it, repeat that with a lower learning rate or in fp32",
        )
    return passed(f"all {len(tensors)} tensors are finite")


def hooks(patient: ModelUnderTest) -> CheckResult:
    """Lists the hooks that others put on the model; they act in everything that is measured."""
    found = foreign_hooks(patient.model)
    if not found:
        return passed("none on the model")
    listed = [f"{name or 'the model'}: {', '.join(hooks)}" for name, hooks in found.items()]
    return passed(
        f"{sum(map(len, found.values()))} on the model, which stay active in all that follows: {some(listed)}"
    )
