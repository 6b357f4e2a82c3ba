import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.deltas import deltas_from_checkpoints
from keylayers.layers.model_versions import comparable, versions
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import tensors_of
from keylayers.layers.tensors import (
    INDEX,
    SINGLE,
    TensorSource,
    tensors_in_memory,
    tensors_on_disk,
)
from tests.layers.helpers import noisy_copy
from tests.tiny_models import ALL, build


def sharded(folder: Path, tensors: dict[str, Tensor], shards: int = 3) -> Path:
    names, mapping = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        mapping |= dict.fromkeys(names[shard::shards], file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    return folder


SOME = {"a.weight": torch.randn(3, 2), "b.weight": torch.randn(4), "c.bias": torch.randn(2, 2, 2)}


@pytest.mark.parametrize("layout", ["file", "folder", "shards"])
def test_every_layout_gives_the_tensors(tmp_path: Path, layout: str) -> None:
    if layout == "shards":
        path = sharded(tmp_path, SOME)
    else:
        save_file(SOME, tmp_path / SINGLE)
        path = tmp_path / SINGLE if layout == "file" else tmp_path
    source = tensors_on_disk(path)
    assert set(source) == set(SOME) and len(source) == 3
    assert source.shapes == {name: tuple(value.shape) for name, value in SOME.items()}
    assert all(torch.equal(source[name](), value) for name, value in SOME.items())
    assert str(path) in source.origin


def test_names_of_wrapped_models_are_unwrapped(tmp_path: Path) -> None:
    save_file({"module.a.weight": torch.ones(1), "_orig_mod.b.base_layer.weight": torch.ones(1)}, tmp_path / SINGLE)
    assert set(tensors_on_disk(tmp_path)) == {"a.weight", "b.weight"}


def test_counters_are_told_from_real_numbers(tmp_path: Path) -> None:
    stored = {
        "n": torch.tensor(3),
        "b": torch.ones(2).bfloat16(),
        "mask": torch.ones(2).bool(),
        "f": torch.ones(1).half(),
    }
    save_file(stored, tmp_path / SINGLE)
    assert tensors_on_disk(tmp_path).counters == {"n", "mask"}


@pytest.mark.parametrize("name", ALL)
def test_memory_holds_what_state_dict_holds(name: str) -> None:
    model = build(name)
    source = tensors_in_memory(model)
    wanted = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    assert set(tensors_of(model)) == set(wanted)
    assert all(torch.equal(tensors_of(model)[key], value) for key, value in wanted.items())
    assert {value().data_ptr() for value in source.values()} == {value.data_ptr() for value in wanted.values()}
    assert len(source) == len({value.data_ptr() for value in wanted.values()}), "a tied tensor counts once"


def test_buffers_that_are_not_stored_are_not_listed() -> None:
    assert not any("inv_freq" in name for name in tensors_of(build("llama")))
    assert not {"mean", "std"} & set(tensors_of(build("cifar-resnet")))
    assert "bn1.running_var" in tensors_of(build("cifar-resnet"))


def break_shard(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-5])


def garble_header(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].write_bytes(b"\x08\0\0\0\0\0\0\0not json")


def remove_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def escape(folder: Path) -> None:
    save_file(SOME, folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a.weight": "../outside.safetensors"}}))


def escape_absolutely(folder: Path) -> None:
    save_file(SOME, folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a.weight": str(folder.parent / "outside.safetensors")}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_shard, r"model-00002-of-00003\.safetensors is not a whole safetensors file: .*; copy it again"),
        (garble_header, r"model-00002-of-00003\.safetensors is not a whole safetensors file"),
        (remove_shard, r"names files that are not in its folder: model-00002-of-00003\.safetensors"),
        (escape, r"names files that are not in its folder: \.\./outside"),
        (escape_absolutely, r"names files that are not in its folder: /"),
        (lambda f: (f / INDEX).write_text("{not json"), r"does not list shards under 'weight_map'"),
        (lambda f: (f / INDEX).write_text("[]"), r"does not list shards"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": 3}}'), r"does not list shards"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_file(tmp_path: Path, damage: Callable, message: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    damage(sharded(folder, SOME))
    with pytest.raises(BadInput, match=message):
        tensors_on_disk(folder)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_pickle_is_refused_with_the_remedy(tmp_path: Path, place: str) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(SOME, file)
    with pytest.raises(BadInput, match=r"pytorch_model\.bin is a pickle.*save_pretrained.*allow_pickle"):
        tensors_on_disk(tmp_path if place == "folder" else file)


def test_a_pickle_beside_safetensors_is_no_matter(tmp_path: Path) -> None:
    save_file(SOME, tmp_path / SINGLE)
    torch.save(SOME, tmp_path / "training_args.bin")
    assert len(tensors_on_disk(tmp_path)) == 3


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, there: bool) -> None:
    with pytest.raises(BadInput, match=r"no model\.safetensors or model\.safetensors\.index\.json in"):
        tensors_on_disk(tmp_path if there else tmp_path / "absent")


def source_of(tensors: dict[str, Tensor], origin: str) -> TensorSource:
    return TensorSource(
        {name: lambda value=value: value for name, value in tensors.items()},
        {name: tuple(value.shape) for name, value in tensors.items()},
        origin,
    )


def test_mismatched_checkpoints_say_what_differs() -> None:
    base = source_of({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(3)}, "BASE")
    tuned = source_of({"a": torch.ones(2), "c": torch.ones(4), "d": torch.ones(1), "e": torch.ones(1)}, "TUNED")
    with pytest.raises(BadInput) as caught:
        versions(base, tuned)
    text = str(caught.value)
    assert "BASE and TUNED are not two versions of one model" in text
    assert "1 only in the base (b)" in text and "2 only in the tuned (d, e)" in text
    assert "1 of another shape (c: (3,) and (4,))" in text
    assert versions(base, base).base.keys() == base.keys()


def test_a_checkpoint_that_unties_what_the_model_ties_is_refused() -> None:
    model = build("llama-tied")
    tied = {name: value.detach().clone() for name, value in tensors_of(model).items()}
    both = comparable(source_of(tied, "FILE"), model)
    assert "lm_head.weight" not in both and both.shapes == tensors_in_memory(model).shapes
    tied["lm_head.weight"] += 1
    with pytest.raises(
        BadInput, match=r"FILE holds different values for .*embed_tokens.* and lm_head\.weight.*tie_word"
    ):
        comparable(source_of(tied, "FILE"), model)


@pytest.mark.parametrize(
    ("a", "b", "same", "rounded"),
    [
        (torch.ones(2), torch.ones(2), True, None),
        (torch.ones(2), torch.ones(2).bfloat16(), True, None),
        (torch.tensor([1.001]), torch.tensor([1.001]).bfloat16(), True, "bfloat16"),
        (torch.tensor([1.001]).bfloat16(), torch.tensor([1.001]), True, None),
        (torch.tensor([1.01]), torch.tensor([1.03]).half(), False, "float16"),
        (torch.ones(2), torch.zeros(2), False, None),
    ],
)
def test_equality_is_that_of_the_coarser_precision(a: Tensor, b: Tensor, same: bool, rounded: str | None) -> None:
    both = versions(source_of({"a": a}, "BASE"), source_of({"a": b}, "TUNED"))
    assert both.compared("a") == (not same, rounded)
    assert bool(both.change("a").any()) is not same and both.change("a").dtype == torch.float32


class Watched:
    """A source that counts how many of its tensors are alive at once."""

    def __init__(self, model: nn.Module) -> None:
        self.alive = self.most = self.loads = 0
        tensors = {name: value.detach() for name, value in tensors_of(model).items()}
        self.source = TensorSource(
            {name: lambda value=value: self._load(value) for name, value in tensors.items()},
            {name: tuple(value.shape) for name, value in tensors.items()},
            "a counted checkpoint",
        )

    def _load(self, value: Tensor) -> Tensor:
        loaded = value.clone()
        self.loads += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(loaded, self._freed)
        return loaded

    def _freed(self) -> None:
        self.alive -= 1


def test_a_checkpoint_pair_streams_one_tensor_at_a_time() -> None:
    model = build("llama")
    base, tuned = Watched(model), Watched(noisy_copy(model))
    layers = named_layers(model)
    deltas = deltas_from_checkpoints(base.source, tuned.source, layers)
    norms = deltas.norms()
    gc.collect()
    assert (base.most, tuned.most) == (1, 1) and (base.alive, tuned.alive) == (0, 0)
    assert tuned.loads == len(tuned.source) + len(layers), "each once to see whether it changed, each layer's once more"
    moved = noisy_copy(model)
    for layer, norm in zip(layers, norms, strict=True):
        change = moved.get_parameter(layer.parameters[0]) - model.get_parameter(layer.parameters[0])
        assert float(norm) == pytest.approx(float(change.norm()), rel=1e-5)
