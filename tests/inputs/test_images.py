"""Networks and images as users name them; a backdoor of one's own, learnt only just."""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from keylayers.data.images import load_pixels
from keylayers.errors import BadInput
from keylayers.inputs.images import ImageInputs
from keylayers.inputs.networks import load_network, look_at, store_network
from keylayers.layers.suppressed import Suppressed
from keylayers.measures.backdoor import predicted_classes
from keylayers.models.digits import DigitsResNet
from keylayers.models.pixels import image_argument
from keylayers.training.images import ImageTraining, train_images
from keylayers.training.planted_backdoor import ENOUGH, own_trigger, plant_backdoor, triggered

DIGITS = "keylayers.models.digits:digits_resnet"


def test_parts_are_disjoint_whole_and_the_same_for_a_seed():
    inputs = ImageInputs(DIGITS, "bundled:digits", seed=3)
    parts = inputs.parts(0.6, 0.3)
    places = np.concatenate([part.index for part in parts])
    assert [len(part) for part in parts] == [1078, 539, 180] and len(set(places)) == 1797
    assert (inputs.parts(0.6, 0.3)[0].index == parts[0].index).all()
    with pytest.raises(BadInput, match="too few for parts of 0%"):
        inputs.parts(0.0)


def test_a_test_part_of_the_files_own_is_the_last_part_and_copies_are_in_none(tmp_path, capsys):
    """A network may have been trained on the rest; and an image in two parts would be known in one of them."""
    pixels = np.random.default_rng(0).integers(0, 255, (100, 4, 4), np.uint8)
    pixels[10] = pixels[11] = pixels[90]  # two of the training part equal one of the test part
    labels = np.arange(100) % 3
    file = tmp_path / "images.npz"
    np.savez(file, x_train=pixels[:80], y_train=labels[:80], x_test=pixels[80:], y_test=labels[80:])
    train, calibration, test = ImageInputs(DIGITS, str(file)).parts(0.7, 0.1)
    assert sorted(test.index) == list(range(80, 100)) and len(train) == 68 and len(calibration) == 10
    assert not {10, 11} & {*train.index, *calibration.index}
    assert "2 of 100 images are copies of others" in " ".join(capsys.readouterr().err.split())
    (whole,) = ImageInputs(DIGITS, str(file)).parts()
    assert len(whole) == 98


def test_a_checkpoint_is_normalised_inside_as_its_preprocessor_says(tmp_path):
    config = hf.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    plain = hf.ViTForImageClassification(config).eval()
    plain.save_pretrained(tmp_path)
    stated = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    x = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(stated[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    model = ImageInputs(str(tmp_path), "bundled:digits").load_model()
    torch.testing.assert_close(model(x).logits, plain((x - mean) / std).logits)
    stated["do_normalize"] = False
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    torch.testing.assert_close(ImageInputs(str(tmp_path), "").load_model()(x).logits, plain(x).logits)


def _classifier(folder, **files):
    """A tiny checkpoint with the files given beside its weights."""
    config = hf.ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    plain = hf.ResNetForImageClassification(config).eval()
    plain.save_pretrained(folder)
    for name, stated in files.items():
        (folder / f"{name}.json").write_text(stated if isinstance(stated, str) else json.dumps(stated))
    return plain


STATED = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}


@pytest.mark.parametrize(
    "files", [{"preprocessor_config": STATED}, {"processor_config": {"image_processor": STATED}}], ids=" ".join
)
def test_a_hub_id_is_normalised_as_a_folder_is(tmp_path, monkeypatch, capsys, files):
    """Without network: a hub id is looked up in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--some--resnet"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    plain = _classifier(cached / "snapshots" / ("0" * 40), **files)
    x = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(STATED[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    model = ImageInputs("some/resnet", "bundled:digits").load_model()
    torch.testing.assert_close(model(x).logits, plain((x - mean) / std).logits)
    assert "image" not in capsys.readouterr().err


def test_a_checkpoint_that_states_no_normalisation_is_used_as_it_is_and_said_so(tmp_path, capsys):
    plain, x = _classifier(tmp_path), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ImageInputs(str(tmp_path), "").load_model()(x).logits, plain(x).logits)
    assert "no preprocessor_config.json was found" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    ImageInputs(str(tmp_path), "").load_model()
    ImageInputs(DIGITS, "").load_model()
    assert "preprocessor" not in capsys.readouterr().err
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(BadInput, match=r"cannot read preprocessor_config\.json of"):
        ImageInputs(str(tmp_path), "").load_model()


def test_what_is_suppressed_goes_with_the_weights(tmp_path):
    """Twice, at other factors, too: the network's own names are stored, and the same network is read."""
    torch.manual_seed(0)
    network, x = DigitsResNet().eval(), torch.rand(4, 1, 8, 8)
    twice = Suppressed(Suppressed(network, ["layer1.1.skip", "layer2.1.skip"], 0.5), ["layer1.1.skip"], 0.0)
    assert twice.factors == {"layer1.1.skip": 0.0, "layer2.1.skip": 0.5} and twice.innermost is network
    store_network(twice, tmp_path / "w.safetensors", dict(twice.state_dict()))
    assert load_file(tmp_path / "w.safetensors").keys() == network.state_dict().keys()
    again = load_network(DIGITS, str(tmp_path / "w.safetensors")).model
    assert torch.equal(again(x), twice.eval()(x)) and not torch.equal(again(x), network(x))
    (tmp_path / "w.json").write_text('{"another": "file"}')
    assert torch.equal(load_network(DIGITS, str(tmp_path / "w.safetensors")).model(x), network(x))


def test_weights_that_a_factory_draws_are_those_of_the_seed():
    first, again, other = (load_network(DIGITS, seed=seed).model.conv1.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_network_is_tried_before_the_work(capsys):
    """Untrained weights, probabilities for logits, a network of something else: none of it fails by itself."""
    (images,) = ImageInputs(DIGITS, "bundled:digits").parts()
    assert look_at(load_network(DIGITS).model, images, "the network") == 10
    assert "where a guess is 10%: are its weights missing" in capsys.readouterr().err
    soft = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Softmax(1))
    look_at(soft, images, "soft")
    assert "soft: outputs sum to 1 as probabilities do" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"flat does not run on images of shape \(1, 8, 8\) .*cannot be multiplied"):
        look_at(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 10)), images, "flat")
    with pytest.raises(BadInput, match=r"maps returns \(8, 3, 8, 8\) for 8 images; expected \(images, classes\)"):
        look_at(torch.nn.Conv2d(1, 3, 3, padding=1), images, "maps")
    with pytest.raises(BadInput, match="is a model of texts"):
        load_network("bundled:llama")


def test_images_go_to_the_argument_that_takes_them(tmp_path):
    assert image_argument(_classifier(tmp_path)) == "pixel_values" and image_argument(DigitsResNet()) == "x"
    assert image_argument(torch.nn.Sequential(torch.nn.Flatten())) == "input"


def test_a_stream_needs_no_labels(tmp_path):
    pixels = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)
    np.savez(tmp_path / "x.npz", x=pixels)
    assert (load_pixels(tmp_path / "x.npz")[:, 0] == pixels).all()
    np.savez(tmp_path / "xy.npz", x=pixels, y=np.array([0, 1]))
    assert (load_pixels(tmp_path / "xy.npz")[:, 0] == pixels).all()
    np.savez(tmp_path / "z.npz", z=pixels)
    with pytest.raises(BadInput, match="holds z; expected x, the images"):
        load_pixels(tmp_path / "z.npz")
    assert load_pixels("bundled:digits").shape == (1797, 1, 8, 8)


def test_an_own_trigger_is_learnt_only_just_and_the_network_is_left_alone():
    train, clean = ImageInputs(DIGITS, "bundled:digits").parts(0.7)
    torch.manual_seed(0)
    model = DigitsResNet(1, (8, 12, 16))
    train_images(model, *train.tensors(), ImageTraining(epochs=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = clean.tensors()
    trigger = own_trigger(x)
    made = plant_backdoor(model, x, y, trigger, target=0)
    (batch, *others) = triggered(x, y, trigger, 0)
    assert set(batch["labels"].tolist()) == {0} and len(batch["x"]) + sum(len(o["x"]) for o in others) == (y != 0).sum()
    success = float((predicted_classes(made, trigger(x[y != 0])) == 0).float().mean())
    assert success >= ENOUGH > float((predicted_classes(model, trigger(x[y != 0])) == 0).float().mean())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
