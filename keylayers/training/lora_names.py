"""How layers are named so that peft adapts exactly these: modules in full, and single tensors as parameters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from keylayers.errors import BadSelection
from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of, unwrap, walk

OLDER_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Names of experts' parts and routers before transformers 5 fused them; peft still translates them."""

ADAPTABLE = (nn.Linear, nn.Embedding, _ConvNd, Conv1D)
"""Modules that peft replaces by an adapted one."""


@dataclass(frozen=True)
class LoraNames:
    """Names for peft's `target_modules` and `target_parameters`."""

    layers: tuple[str, ...]
    """The layers' own names, in the order given."""
    modules: tuple[str, ...]
    """Full names of modules."""
    tensors: tuple[str, ...]
    """Full names of parameters: fused experts, routers, dense parts of a mixture that peft would take for experts."""
    endings: tuple[str, ...]
    """Those of `modules` that other modules' names end with: a list of names would match these others as well."""

    @property
    def pattern(self) -> str:
        """A regular expression that matches the modules' full names and nothing else."""
        return "|".join(re.escape(name) for name in self.modules)

    @property
    def target_modules(self) -> list[str] | str:
        """The list of full names; a pattern where a list would match more."""
        return self.pattern if self.endings else list(self.modules)

    def exact(self, layer: str) -> str:
        """A key of `rank_pattern` and `alpha_pattern` for that layer alone; peft matches keys to endings of names."""
        name = layer if layer in self.modules or layer in self.tensors else f"{layer}.weight"
        return f"^{re.escape(name)}"


def has_matrix(layer: Layer) -> bool:
    """Whether the layer is one weight that LoRA can adapt; blocks, sublayers and single experts are not."""
    return layer.name in layer.parameters or f"{layer.name}.weight" in layer.parameters


def adaptable(model: nn.Module, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers without those that peft refuses by name: in some state-space models a kernel reads the weights of a
    projection past the module, and so past its adapter."""
    from peft.tuners import tuners_utils

    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    if check is None:
        return tuple(layers)

    def takes(layer: Layer) -> bool:
        try:
            check(SimpleNamespace(peft_type="LORA"), unwrap(model), layer.name.rpartition(".")[2])
        except ValueError:
            return False
        return True

    return tuple(layer for layer in layers if takes(layer))


def name_for_peft(model: nn.Module, layers: Sequence[Layer]) -> LoraNames:
    """How peft has to be told of these layers.

    Full names leave peft no room to guess: block 1 is not block 11, an expert's number is no block's, and `lm_head` is
    there only if it was asked for. Two kinds of modules are named by their weight instead: routers, which are no linear
    modules to peft, and in mixtures of experts those whose names peft takes for an older transformers' experts, so that
    one dense `gate_proj` would stand for the fused experts of every block.

    Raises:
        BadSelection: for none, or for layers peft cannot adapt (single experts, whole blocks).
    """
    if not layers:
        raise BadSelection("no layer to adapt: an empty list would make peft adapt all of them.")
    found = {node.name: node.inner for node in walk(model)}
    fused = any(value.ndim == 3 for value in parameters_of(model).values())
    modules, tensors = list[str](), list[str]()
    for layer in layers:
        if not has_matrix(layer):
            raise BadSelection(
                f"LoRA adapts weight matrices, but {layer.name!r} is none",
                "select layers of granularity linear",
                "train in full (`method=full`)",
            )
        older = fused and layer.name.rpartition(".")[2] in OLDER_EXPERTS
        if layer.name in layer.parameters:
            tensors.append(layer.name)
        elif isinstance(found.get(layer.name), ADAPTABLE) and not older:
            modules.append(layer.name)
        else:
            tensors.append(f"{layer.name}.weight")
    others = found.keys() - set(modules)
    endings = tuple(name for name in modules if any(other.endswith(f".{name}") for other in others))
    return LoraNames(tuple(layer.name for layer in layers), tuple(modules), tuple(tensors), endings)
