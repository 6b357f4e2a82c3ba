"""Weights on disk under the model's names, without the model: equal to those of the loaded model, on every network."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import tensors_in_memory
from keylayers.layers.weight_matrices import matrices
from keylayers.models import stored
from keylayers.models.stored import stored_weights
from tests.tiny_models import ALL, build

SAVED = [name for name in ALL if name != "cifar-resnet"]


@pytest.fixture(autouse=True)
def no_model_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("built a model"))


def same(folder: Path, model: torch.nn.Module, **options: str) -> int:
    """Compares every matrix of every layer; how many there were."""
    found = stored_weights(str(folder), **options)
    assert found is not None
    loaded, weights = found
    assert all(parameter.device.type == "meta" for parameter in loaded.model.parameters())
    memory, count = tensors_in_memory(model), 0
    for granularity in ("linear", "block", "expert", "conv"):
        try:
            layers = named_layers(model, granularity)
        except BadInput:
            continue
        assert named_layers(loaded.model, granularity) == layers
        for layer in layers:
            for one, other in zip(matrices(weights, layer), matrices(memory, layer), strict=True):
                assert (one.name, one.shape) == (other.name, other.shape)
                assert torch.equal(one.load(), other.load()), one.name
                count += 1
    return count


@pytest.mark.parametrize("name", SAVED)
def test_every_matrix_is_the_loaded_models(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)  # mixtures as one tensor per expert, vision models under their older names
    assert same(tmp_path, model) >= 20


def test_half_precision_and_shards_are_read_as_they_are(tmp_path: Path) -> None:
    model = build("qwen3-moe").bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert same(tmp_path, model) == 100


def test_names_without_the_base_models_prefix_are_found(tmp_path: Path) -> None:
    """As GPT-2 is stored on the hub."""
    model = build("gpt2")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("transformer."): one for name, one in load_file(file).items()}, file, {"format": "pt"})
    assert same(tmp_path, model) >= 20


def test_a_factory_and_its_weights(tmp_path: Path) -> None:
    from keylayers.models.cifar import resnet20

    model = resnet20().eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    found = stored_weights("keylayers.models.cifar:resnet20", weights=str(tmp_path / "weights.safetensors"))
    assert found is not None
    layer = named_layers(found[0].model, "conv")[3]
    (matrix,) = matrices(found[1], layer)
    assert torch.equal(matrix.load().flatten(), model.get_parameter(layer.parameters[0]).flatten())
    assert stored_weights("keylayers.models.cifar:resnet20") is None  # weights of its own making, on no disk


def test_what_does_not_stream_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("olmoe")
    model.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stored, "_renamed", lambda *args: (_ for _ in ()).throw(AttributeError("moved")))
        assert stored_weights(str(tmp_path)) is None
    file = tmp_path / "model.safetensors"
    kept = {name: one for name, one in load_file(file).items() if ".experts.3." not in name or "layers.2" not in name}
    save_file(kept, file, {"format": "pt"})
    assert stored_weights(str(tmp_path)) is None  # an expert is missing


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="is a pickle"):
        stored_weights(str(tmp_path))


def test_the_bundled_model() -> None:
    found = stored_weights("bundled:llama")
    assert found is not None and len(named_layers(found[0].model)) == 85
    assert found[0].identity()["architecture"] == "LlamaForCausalLM"
