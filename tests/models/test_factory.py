from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.models import load_model, load_shape
from keylayers.models.cifar import CifarResNet, resnet20, resnet32, resnet56

SOURCE = "keylayers.models.cifar:resnet20"


def stored(tmp_path: Path, **changes: torch.Tensor | None) -> tuple[str, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    state = resnet20().state_dict() | changes
    kept = {name.replace("__", "."): value for name, value in state.items() if value is not None}
    save_file(kept, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors"), kept


def test_weights_are_put_into_the_network(tmp_path: Path) -> None:
    weights, state = stored(tmp_path)
    loaded = load_model(SOURCE, weights=weights)
    assert isinstance(loaded.model, CifarResNet) and not loaded.model.training and loaded.tokenizer is None
    assert all(torch.equal(value, state[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.identity()["parameters"] == sum(p.numel() for p in resnet20().parameters())


@pytest.mark.parametrize(
    ("factory", "millions", "convolutions"), [(resnet20, 0.27, 19), (resnet32, 0.46, 31), (resnet56, 0.85, 55)]
)
def test_sizes_are_those_of_he_et_al(factory, millions: float, convolutions: int) -> None:
    model = factory()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert len(named_layers(model, "conv")) == convolutions
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_network_normalises_images_itself() -> None:
    model, image = resnet20().eval(), torch.rand(1, 3, 32, 32)
    seen: list[torch.Tensor] = []
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(image)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        assert torch.allclose(seen[0][0, channel], (image[0, channel] - mean) / std, atol=1e-6)


def test_counters_may_be_absent(tmp_path: Path) -> None:
    counters = {name: None for name in resnet20().state_dict() if name.endswith("num_batches_tracked")}
    weights, _ = stored(tmp_path, **counters)
    assert int(load_model(SOURCE, weights=weights).model.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.weight": None}, r"1 tensors missing \(conv1\.weight\)\. Give"),
        ({"extra.weight": torch.ones(1)}, r"1 tensors unknown \(extra\.weight\)\. Give"),
        ({"linear.bias": torch.ones(3)}, r"1 tensors of another shape \(linear\.bias\)\. Give"),
        ({"linear.bias": None, "fc.bias": torch.ones(10)}, r"missing \(linear\.bias\); 1 tensors unknown \(fc\.bias\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    weights, _ = stored(tmp_path, **changes)
    with pytest.raises(BadInput, match=message):
        load_model(SOURCE, weights=weights)


def test_a_pickle_is_refused_unless_allowed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = resnet20().state_dict()
    file = tmp_path / "resnet.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, file)
    with pytest.raises(BadInput, match=r"resnet\.pth is a pickle.*allow_pickle"):
        load_model(SOURCE, weights=str(file))
    loaded = load_model(SOURCE, weights=str(file), allow_pickle=True).model
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no file .*absent\.safetensors"):
        load_model(SOURCE, weights=str(tmp_path / "absent.safetensors"))


def test_a_shape_takes_no_memory() -> None:
    assert all(tensor.is_meta for tensor in load_shape(SOURCE).parameters())


@pytest.mark.parametrize("load", [load_model, load_shape])
@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("keylayers.models.cifar:resnet21", UnknownName, "did you mean .*'resnet20'"),
        ("no.such.module:build", BadInput, r"cannot import 'no\.such\.module'.*Expected package\.module:factory"),
        (":build", BadInput, "cannot import ''"),
        ("builtins:dict", BadInput, r"builtins:dict returned dict; a factory takes no arguments"),
        ("keylayers.models.cifar:CifarResNet", BadInput, "cannot be called without arguments"),
    ],
)
def test_a_factory_that_is_none_is_refused(load, source: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load(source)


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path not in ("", str(tmp_path))])
    assert load_model("my_own_net:build").model.out_features == 3
