"""What can be scored: the layers of a network at a granularity, found by structure and listed in forward order."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.blocks import find_blocks, scalars
from keylayers.layers.experts import fused_keys, holds_experts, is_expert_list, members, routers_beside
from keylayers.layers.layer import GRANULARITIES, Granularity, Layer
from keylayers.layers.ordering import in_forward_order, visit_order
from keylayers.layers.skips import skip_layers
from keylayers.layers.structure import Node, inner_module, logical_shape, parameters_of, walk


def named_layers(
    model: nn.Module,
    granularity: Granularity | str = "linear",
    *,
    tied: bool = False,
    example: Mapping[str, Tensor] | None = None,
) -> tuple[Layer, ...]:
    """The layers of a network at a granularity, in forward order; works on the meta device, leaves the model as it is.

    `block`: residual units. `sublayer`: attention and mlp. `linear`: every weight matrix, fused expert tensors
    included, embeddings and routers left out (ILA's "layer": 225 of them in Llama-2-7B). `expert`: each expert of a
    mixture. `router`: its gate. `conv`: convolutions. `skip`: skip connections, for which the network runs once on
    shapes alone (on `example` where given).

    A linear layer whose weight is another module's (an output head tied to the embeddings) is listed only with
    `tied=True`, since training it trains both. `example` is an input for networks that are not Hugging Face models;
    without one their layers come in ownership order.

    Raises:
        UnknownName: for a granularity that does not exist.
        BadInput: if the network has no layer of that granularity.
    """
    if granularity not in GRANULARITIES:
        raise UnknownName("granularity", granularity, GRANULARITIES)
    if granularity == "skip":
        return skip_layers(model, example)
    network = _Network(model)
    layers = getattr(network, f"{granularity}_layers")()
    if not tied:
        layers = [layer for layer in layers if layer.tied_to is None]
    if not layers:
        present = [other for other in GRANULARITIES if other != "skip" and getattr(network, f"{other}_layers")()]
        raise BadInput(
            f"{type(network.root).__name__} has no layer of granularity {granularity!r}; "
            f"it has: {', '.join(present) or 'none'}."
        )
    return in_forward_order(layers, network.blocks, visit_order(model, example))


class _Network:
    """One walk's findings, shared by the granularities."""

    def __init__(self, model: nn.Module) -> None:
        self.nodes = {node.name: node for node in walk(model)}
        self.root = self.nodes[""].inner
        self.parameters = parameters_of(model)
        self.blocks = find_blocks(model)
        self._block_of = {block: index for index, block in enumerate(self.blocks)}
        first: dict[int, str] = {}
        self.tied = {
            name: owner
            for name, value in self.parameters.items()
            if (owner := first.setdefault(id(value), name)) != name
        }
        self.fused = {
            name: keys
            for name, node in self.nodes.items()
            if self.block_of(name) is not None and (keys := fused_keys(node.inner))
        }
        self.experts = {
            name: keys
            for name, keys in self.fused.items()
            if holds_experts(name, self.nodes[name].inner, self._parent(name).inner)
        }
        self.lists = [
            name
            for name, node in self.nodes.items()
            if name and self.block_of(name) is not None and is_expert_list(node.inner, self._parent(name).inner)
        ]
        self.routers = {name for name in [*self.experts, *self.lists] for name in self._routers_beside(name)}

    def block_of(self, name: str) -> int | None:
        while name:
            if name in self._block_of:
                return self._block_of[name]
            name = name.rpartition(".")[0]
        return None

    def _parent(self, name: str) -> Node:
        return self.nodes[name.rpartition(".")[0]]

    def _routers_beside(self, name: str) -> Iterable[str]:
        parent = self._parent(name)
        for router in routers_beside(self.nodes[name].inner, parent.inner):
            yield f"{parent.name}.{router}".removeprefix(".")

    def layer(self, name: str, parameters: Iterable[str], kind: str | None = None) -> Layer:
        names = tuple(parameters)
        block = self.block_of(name.split("[")[0])
        inside = name[len(self.blocks[block]) + 1 :] if block is not None else name
        size, lora = (sum(map(count, names)) for count in (self._size, self._lora_size))
        tied = next(map(self.tied.get, names), None)
        return Layer(name, block, kind or inside or "block", names, size, lora, tied)

    def _size(self, name: str) -> int:
        whole, bracket, _ = name.partition("[")
        parameter = self.parameters[whole]
        return scalars(parameter) // (logical_shape(parameter)[0] if bracket else 1)

    def _lora_size(self, name: str) -> int:
        """d_in + d_out of a matrix, of each in a fused tensor; a convolution's d_in counts its kernel; 0 of a bias."""
        whole, bracket, _ = name.partition("[")
        shape = logical_shape(self.parameters[whole])[1 if bracket else 0 :]
        if len(shape) == 4:  # (out, in, height, width)
            shape = (shape[0], math.prod(shape[1:]))
        is_bias = len(shape) < 2 or whole.endswith("bias")  # that of fused experts has two axes
        return 0 if is_bias else math.prod(shape[:-2]) * sum(shape[-2:])

    def below(self, *places: str) -> list[str]:
        """Parameters in those modules, a tied one only where it is first used."""
        return [
            name
            for name in self.parameters
            if name not in self.tied and any(name.startswith(f"{place}.") for place in places)
        ]

    def block_layers(self) -> list[Layer]:
        return [self.layer(block, self.below(block)) for block in self.blocks]

    def sublayer_layers(self) -> list[Layer]:
        found = []
        for block in self.blocks:
            parts = [
                part for part in self._parts(block) if any(len(self.parameters[n].shape) > 1 for n in self.below(part))
            ]
            attention = [part for part in parts if self._is_attention(part)]
            rest = [part for part in parts if part not in attention]
            if not attention:
                continue
            found += [self.layer(part, self.below(part)) for part in attention]
            if rest:  # BERT keeps its mlp in two modules: one layer, both names
                joined = "+".join([rest[0], *(part.rpartition(".")[2] for part in rest[1:])])
                kind = "+".join(part[len(block) + 1 :] for part in rest)
                found.append(self.layer(joined, self.below(*rest), kind))
        return found

    def _parts(self, block: str) -> Iterable[str]:
        for key, child in self.nodes[block].inner.named_children():
            place = f"{block}.{key}"
            if isinstance(inner_module(child), nn.ModuleList):
                yield from (f"{place}.{index}" for index, _ in inner_module(child).named_children())
            else:
                yield place

    def _is_attention(self, place: str) -> bool:
        words = f"{place.rpartition('.')[2]} {type(self.nodes[place].inner).__name__}".lower()
        return "attn" in words or "attention" in words

    def linear_layers(self) -> list[Layer]:
        found = []
        for name, node in self.nodes.items():
            if name in self.fused:
                found += [self.layer(f"{name}.{key}", self._with_bias(name, key)) for key in self.fused[name]]
            weight = node.inner._parameters.get("weight")
            if weight is None or isinstance(node.inner, nn.Embedding | _ConvNd) or name in self.routers:
                continue
            if len(logical_shape(weight)) == 2:
                found.append(
                    self.layer(name, (f"{name}.{key}" for key, v in node.inner._parameters.items() if v is not None))
                )
        return found

    def _with_bias(self, name: str, key: str) -> list[str]:
        owned = self.nodes[name].inner._parameters
        return [f"{name}.{key}"] + [f"{name}.{key}_bias" for _ in range(owned.get(f"{key}_bias") is not None)]

    def expert_layers(self) -> list[Layer]:
        found = []
        for name, keys in self.experts.items():
            count = logical_shape(self.parameters[f"{name}.{keys[0]}"])[0]
            owned = [parameter for key in keys for parameter in self._with_bias(name, key)]
            found += [self.layer(f"{name}[{e}]", (f"{p}[{e}]" for p in owned)) for e in range(count)]
        for name in self.lists:
            places = [f"{name}.{key}" for key in members(self.nodes[name].inner)]
            found += [self.layer(place, self.below(place)) for place in places]
        return found

    def router_layers(self) -> list[Layer]:
        return [self.layer(name, self.below(name)) for name in self.nodes if name in self.routers]

    def conv_layers(self) -> list[Layer]:
        return [
            self.layer(name, self.below(name)) for name, node in self.nodes.items() if isinstance(node.inner, _ConvNd)
        ]
