"""EasyEdit: hyper-parameters of editing methods (FT, and where it fits MEMIT and ROME) for the selected layers.

EasyEdit knows a template with the block's number left open and a list of numbers, so it can edit one kind of layer in
any blocks, or whole blocks. Which parameters that means is restated from zjunlp/EasyEdit: FT takes every parameter
whose name contains the filled template (easyeditor/models/ft/ft_main.py), MEMIT and ROME the one called template +
`.weight` (memit_main.py, rome_main.py). Those two solve for the matrix that writes what the MLP adds to the residual
stream, so they get a file only if that matrix is selected. Numbers beside the layers are EasyEdit's for Llama-2-7B
(hparams/MEMIT/llama-7b.yaml and its neighbours).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from torch import nn

from keylayers.errors import BadInput
from keylayers.exports.loaded import require_loadable
from keylayers.exports.stored import require_whole, stored_parameters
from keylayers.exports.target import CannotExpress, ExportSettings, Target
from keylayers.exports.yaml_format import yaml_text
from keylayers.layers.blocks import find_blocks
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import first_names, logical_shape, parameters_of, unwrap, walk
from keylayers.scores.selection import Selection

Hparams = dict[str, Any]
FT: Hparams = {
    "num_steps": 25,
    "batch_size": 1,
    "max_length": 40,
    "lr": 5e-4,
    "weight_decay": 0,
    "kl_factor": 0,
    "norm_constraint": False,
    "objective_optimization": "prompt_last",
}
LOCATED: Hparams = {
    "fact_token": "subject_last",
    "v_num_grad_steps": 25,
    "v_lr": 0.5,
    "v_weight_decay": 0.001,
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
    "stats_dir": "./data/stats",
}
MEMIT: Hparams = LOCATED | {"layer_selection": "all", "mom2_adjustment": True, "mom2_update_weight": 15000}
ROME: Hparams = LOCATED | {"mom2_adjustment": False, "context_template_length_params": [[5, 10], [10, 10]]}


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """One YAML per method that can edit these layers.

    Raises:
        CannotExpress: for layers of several kinds, outside the blocks or without a name of their own, and for models
            that are no causal language models.
    """
    _require_editable(model)
    require_whole(selection, "EasyEdit")
    blocks = find_blocks(model)
    places = {layer.name: _template(blocks, layer) for layer in selection.chosen}
    outside = [name for name, place in places.items() if place is None]
    if outside:
        raise CannotExpress(f"EasyEdit numbers blocks, and {outside[0]} lies in none.")
    templates = {place[0] for place in places.values() if place is not None}
    if len(templates) > 1:
        shown = ", ".join(sorted(templates)[:4]) + (", ..." if len(templates) > 4 else "")
        raise CannotExpress(f"EasyEdit edits one kind of layer in some blocks; asked are {len(templates)}: {shown}.")
    template, numbers = templates.pop(), sorted(place[1] for place in places.values() if place is not None)
    parts, first = _sublayers(model), selection.chosen[0]
    stack = template.partition(".{}")[0]
    common = {"model_name": settings.model, "device": 0, "layers": numbers}
    common |= _modules(model, stack, [part for part in parts if part.block == first.block])
    contents = {"FT": FT | common | {"rewrite_module_tmp": _within(model, template, numbers)}}
    if set(selection.names) <= _writing_to_residual(model, parts):
        last = max(int(block.rpartition(".")[2]) for block in blocks if block.startswith(f"{stack}."))
        located = common | {"rewrite_module_tmp": template, "v_loss_layer": last}
        contents["MEMIT"] = MEMIT | located
        if len(numbers) == 1:
            contents["ROME"] = ROME | located
    slug = settings.model.rstrip("/").rpartition("/")[2] or "model"
    return {
        f"hparams/{method}/{slug}.yaml": yaml_text({"alg_name": method} | content, selection)
        for method, content in contents.items()
    }


def read_back(model: nn.Module, files: Mapping[str, str]) -> set[str]:
    """Layers that EasyEdit would edit by these files; a parameter it would take beside them under its own name.

    Raises:
        CannotExpress: if the files disagree, or EasyEdit would stop for want of a parameter.
    """
    found = [_edited(stored_parameters(model), yaml.safe_load(text)) for text in files.values()]
    if any(one != found[0] for one in found):
        raise CannotExpress("EasyEdit's methods would edit different layers by these files.")
    return found[0]


def _edited(names: set[str], hparams: Hparams) -> set[str]:
    template, method, layers = hparams["rewrite_module_tmp"], hparams["alg_name"], set[str]()
    for number in hparams["layers"]:
        filled = template.format(number)
        layer = filled.removesuffix(".").removesuffix(".weight") if method == "FT" else filled
        if method == "FT":
            taken = {name for name in names if filled in name}
        else:
            taken = {f"{filled}.weight"} & names
        if not taken:
            raise CannotExpress(f"EasyEdit's {method} would find no parameter for {filled}.")
        layers |= {layer if _owned(name, layer) else name for name in taken}
    return layers


def _owned(name: str, layer: str) -> bool:
    """Whether a parameter is a layer's: the module's, or the fused tensor itself or its bias."""
    return name in (layer, f"{layer}_bias") or name.startswith(f"{layer}.")


def nearest(model: nn.Module, selection: Selection) -> Selection | None:
    """The one kind of layer that holds most of the selected parameters, in the blocks where it is selected."""
    kinds: dict[str, list[Layer]] = {}
    stored, blocks = stored_parameters(model), find_blocks(model)
    for layer in selection.chosen:
        place = _template(blocks, layer)
        if place is not None and stored.issuperset(layer.parameters):
            kinds.setdefault(place[0], []).append(layer)
    if not kinds:
        return None
    most = max(kinds.values(), key=lambda layers: sum(layer.size for layer in layers))
    return Selection.of(selection.layers, names=[layer.name for layer in most], allow_total=True)


def _require_editable(model: nn.Module) -> None:
    """Raises CannotExpress for what is no causal language model."""
    require_loadable(model, "EasyEdit", generates=False)
    network: Any = unwrap(model)
    if not network.can_generate() or network.config.is_encoder_decoder:
        raise CannotExpress(f"EasyEdit's methods edit causal language models, and {type(network).__name__} is none.")


def _template(blocks: Sequence[str], layer: Layer) -> tuple[str, int] | None:
    """(the layer's name with its block's number left open, that number); None outside the blocks."""
    if layer.block is None:
        return None
    block = blocks[layer.block]
    stack, _, number = block.rpartition(".")
    return f"{stack}.{{}}{layer.name[len(block) :]}", int(number)


def _within(model: nn.Module, template: str, numbers: list[int]) -> str:
    """The template for FT, which takes all names that contain it: closed by a dot unless it is a parameter's name."""
    names = stored_parameters(model)
    return template if all(template.format(number) in names for number in numbers) else f"{template}."


def _writing_to_residual(model: nn.Module, sublayers: Sequence[Layer]) -> set[str]:
    """Names of the matrices by which dense MLPs write to the residual stream: the last of each with its width."""
    network: Any = unwrap(model)
    found, width, parameters = set(), network.config.get_text_config().hidden_size, parameters_of(model)
    for mlp in sublayers:
        if _is_attention(mlp) or any(len(logical_shape(parameters[name])) > 2 for name in mlp.parameters):
            continue  # fused experts: there are as many such matrices as experts
        inside = [node for node in walk(model) if f"{node.name}.weight" in mlp.parameters]
        writers = [n.name for n in inside if width in (getattr(n.inner, "out_features", 0), getattr(n.inner, "nf", 0))]
        found |= set(writers[-1:])
    return found


def _sublayers(model: nn.Module) -> tuple[Layer, ...]:
    """Attention and MLPs; none in networks of other parts."""
    try:
        return named_layers(model, "sublayer")
    except BadInput:
        return ()


def _is_attention(sublayer: Layer) -> bool:
    return "attn" in sublayer.kind.lower() or "attention" in sublayer.kind.lower()


def _modules(model: nn.Module, stack: str, parts: Sequence[Layer]) -> dict[str, str]:
    """The names EasyEdit wants of the modules around the edited ones; `parts` are those of one edited block."""
    attention = next((f".{part.kind}" for part in parts if _is_attention(part)), "")
    mlp = next((f".{part.kind}" for part in parts if not _is_attention(part)), "")
    head = next(node.name for node in walk(model) if node.inner is unwrap(model).get_output_embeddings())  # type: ignore[operator]
    norms = [
        node.name
        for node in walk(model)
        if not node.name.startswith(f"{stack}.")
        and isinstance(weight := node.inner._parameters.get("weight"), nn.Parameter)
        and weight.ndim == 1
    ]
    return {
        "layer_module_tmp": f"{stack}.{{}}",
        "mlp_module_tmp": f"{stack}.{{}}{mlp}",
        "attn_module_tmp": f"{stack}.{{}}{attention}",
        "ln_f_module": norms[-1] if norms else "",
        # EasyEdit looks the head's weight up among named parameters, where a tied one goes by its first name.
        "lm_head_module": first_names(model)[f"{head}.weight"].removesuffix(".weight"),
    }


TARGET = Target(
    name="easyedit",
    unit="layers",
    render=render,
    read_back=read_back,
    nearest=nearest,
    usage=(
        "e.g. MEMITHyperParams.from_hparams('hparams/MEMIT/...yaml'); beside the layers, the numbers are EasyEdit's "
        "for Llama-2-7B. MEMIT writes the weight and leaves a bias alone."
    ),
)
