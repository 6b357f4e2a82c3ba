"""Skip connections of every architecture, and that scaling them is what scaling them by hand would be."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.intervene import scaled
from keylayers.layers.naming import named_layers
from keylayers.layers.skips import scaled_skips
from keylayers.models.cifar import CifarResNet
from keylayers.models.digits import DigitsResNet
from tests.layers.helpers import forward_batch, full_state, logits, same_state
from tests.tiny_models import ALL, SMALL, build

PER_BLOCK = {"gpt-neox": 1, "gptj": 1, "hf-resnet": 1, "cifar-resnet": 1}  # attention and mlp side by side: one


@pytest.mark.parametrize("name", ALL)
def test_every_residual_addition_is_found_and_nothing_else(name: str) -> None:
    """Rotary embeddings, masks, position biases and shared experts are added, too, and are no skips."""
    layers = named_layers(build(name), "skip")
    if name == "t5":
        expected = [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    else:
        blocks = len(named_layers(build(name), "block"))
        expected = [block for block in range(blocks) for _ in range(PER_BLOCK.get(name, 2))]
    assert [layer.block for layer in layers] == expected
    assert len({layer.name for layer in layers}) == len(layers) == len({(one.block, one.kind) for one in layers})
    assert all(layer.kind.partition(".")[0] == "skip" for layer in layers)


@pytest.mark.parametrize("name", ALL)
def test_one_changes_no_bit_and_zero_changes_the_output_and_all_is_undone(name: str) -> None:
    model, batch = build(name).train(), forward_batch(name)
    model.eval()
    before, truth = full_state(model), logits(model, batch)
    layers = named_layers(model, "skip")
    with scaled_skips(model, layers, 1):
        assert torch.equal(logits(model, batch), truth)
    ones = torch.tensor(1.0)
    with scaled_skips(model, layers, ones):  # a tensor is multiplied, and that is exact, too
        assert torch.equal(logits(model, batch), truth)
    for layer in (layers[0], layers[-1]):
        with scaled_skips(model, [layer], 0):
            assert not torch.allclose(logits(model, batch), truth)
    assert torch.equal(logits(model, batch), truth)
    assert same_state(before, full_state(model))


class Pieces(nn.Module):
    """A CIFAR or digits network whose blocks are run by hand, with a factor on each skip."""

    def __init__(self, model: nn.Module, factors: list[float]) -> None:
        super().__init__()
        self.model, self.factors = model, factors
        for stage in (model.layer1, model.layer2, model.layer3):
            for block in stage:
                block.forward = self.forward_of(block, factors.pop(0))

    @staticmethod
    def forward_of(block: nn.Module, factor: float):
        def forward(x):
            out = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
            if isinstance(getattr(block, "shortcut", None), nn.Module):
                skip = block.shortcut(x)
            elif out.shape == x.shape:
                skip = x
            else:
                pad = (out.shape[1] - x.shape[1]) // 2
                skip = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
            return torch.relu(out + factor * skip)

        return forward

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize(
    ("make", "size"), [(lambda: CifarResNet(2, (8, 16, 32)), (3, 32, 32)), (lambda: DigitsResNet(), (1, 8, 8))]
)
def test_factors_are_those_put_in_by_hand(make, size) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.rand(3, *size)
    layers = named_layers(model, "skip")
    factors = [1.0, 0.3, 0.0, 1.0, 0.7, 0.5]
    by_hand = Pieces(copy.deepcopy(model), list(factors))
    with (
        scaled_skips(model, [layers[1]], 0.3),
        scaled_skips(model, [layers[2]], 0),
        scaled_skips(model, [layers[4]], 0.7),
        scaled_skips(model, [layers[5].name], 0.5),
    ):
        assert torch.allclose(model(x), by_hand(x), rtol=1e-5, atol=1e-6)


def test_a_projection_is_a_module_with_parameters_and_an_identity_has_none() -> None:
    layers = named_layers(DigitsResNet(), "skip")
    assert [layer.name.rpartition(".")[2] for layer in layers] == ["skip", "skip", "shortcut", "skip"] * 1 + [
        "shortcut",
        "skip",
    ]
    assert [layer.size for layer in layers] == [0, 0, 12 * 24 + 48, 0, 24 * 48 + 96, 0]
    assert layers[2].parameters[0] == "layer2.0.shortcut.0.weight" and layers[2].kind == "skip"


def test_both_skips_of_a_transformer_block_are_told_apart() -> None:
    model, batch = build("vit"), forward_batch("vit")
    layer, name = model.vit.layers[1], "vit.layers.1"
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.no_grad(), scaled_skips(model, [f"{name}.skip.0"], 0.25), scaled_skips(model, [f"{name}.skip.1"], 0.5):
        model(**batch)
    handle.remove()
    x, got = seen
    with torch.no_grad():
        attention = layer.attention(layer.layernorm_before(x))
        middle = (attention[0] if isinstance(attention, tuple) else attention) + 0.25 * x
        after = layer.layernorm_after(middle)
        truth = layer.mlp(after) + 0.5 * middle
    assert torch.allclose(got, truth, atol=1e-6)


class Bottleneck(nn.Module):
    """As torchvision writes it: added in place, a module only where the shape changes."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(d_in, d_out, 3, padding=1), nn.BatchNorm2d(d_out)
        self.conv2, self.bn2 = nn.Conv2d(d_out, d_out, 3, padding=1), nn.BatchNorm2d(d_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(d_in, d_out, 1), nn.BatchNorm2d(d_out)) if d_in != d_out else None
        self.factor = 1.0

    def forward(self, x):
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        if self.factor != 1:
            identity = identity * self.factor
        out += identity
        return self.relu(out)


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Bottleneck(4, 4), Bottleneck(4, 4))
        self.layer2 = nn.Sequential(Bottleneck(4, 8), Bottleneck(8, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        return self.fc(self.layer2(self.layer1(self.stem(images))).mean((2, 3)))


@pytest.mark.parametrize("which", range(4))
def test_networks_as_torchvision_writes_them(which: int) -> None:
    """Added in place; nothing says what the network takes, so an image of its channels is tried."""
    torch.manual_seed(0)
    model = Vision().eval()
    layers = named_layers(model, "skip")
    names = ["layer1.0.skip", "layer1.1.skip", "layer2.0.downsample", "layer2.1.skip"]
    assert [layer.name for layer in layers] == names
    by_hand, x = copy.deepcopy(model), torch.rand(2, 2, 9, 9)
    [*by_hand.layer1, *by_hand.layer2][which].factor = 0.4
    with scaled_skips(model, [layers[which]], 0.4):
        out = model(x)
        out.sum().backward()
    by_hand(x).sum().backward()
    assert torch.allclose(out, by_hand(x), atol=1e-6)
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_convnext_whose_branch_is_scaled_by_a_parameter() -> None:
    config = hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 1], num_stages=2, image_size=16, num_labels=3)
    model = hf.ConvNextForImageClassification(config).eval()
    layers = named_layers(model, "skip")
    assert len(layers) == 3 and all(layer.size == 0 for layer in layers)
    x, name = torch.rand(2, 3, 16, 16), layers[1].name.removesuffix(".skip")
    outputs = []
    for factor in (1.0, 0.0):
        with torch.no_grad(), scaled_skips(model, layers[1:2], factor), capture(model, [name]) as seen:
            model(x)
        outputs.append(seen.outputs[name] - factor * seen.inputs[name])
    assert torch.allclose(*outputs, atol=1e-6) and outputs[0].any()


class Loop(nn.Module):
    """Residuals added by the parent, in four spellings, one of them into the very tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.factors = [1.0] * 4

    def forward(self, x):
        x = x.clone()
        x = self.factors[0] * x + self.parts[0](x)
        x = torch.add(self.parts[1](x), self.factors[1] * x)
        x = (self.factors[2] * x).add(torch.tanh(self.parts[2](x)))
        f = self.parts[3](x)
        x *= self.factors[3]
        x += f
        return x


@pytest.mark.parametrize("which", range(4))
def test_skips_in_the_code_of_the_parent(which: int) -> None:
    torch.manual_seed(0)
    model, x = Loop(), torch.rand(3, 4)
    layers = named_layers(model, "skip", example={"x": x})
    assert [layer.name for layer in layers] == [f"skip.{index}" for index in range(4)]
    assert all(layer.block is None for layer in layers)
    by_hand = copy.deepcopy(model)
    by_hand.factors[which] = -2.0
    with torch.no_grad(), scaled_skips(model, [layers[which]], -2.0, example={"x": x}):
        assert torch.allclose(model(x), by_hand(x), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_another_kernel_of_attention_adds_masks_and_moves_no_skip(batch: int) -> None:
    """Skips are found with the configuration's kernel; the eager one adds a mask, with one head of the same shape."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**SMALL, "num_attention_heads": 1, "num_key_value_heads": 1})
    model = hf.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 96, (batch, 5))
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    outputs = []
    for kernel in ("sdpa", "eager"):
        model.set_attn_implementation(kernel)
        with torch.no_grad(), scaled_skips(model, ["model.layers.1.skip.0", "model.layers.2.skip.1"], 0.3):
            outputs.append(model(input_ids=ids, attention_mask=mask).logits[:, 1:])
    assert torch.allclose(*outputs, atol=1e-5)


def test_scaling_a_mixers_output_is_another_thing_than_scaling_its_skip() -> None:
    model, batch = build("llama"), forward_batch("llama")
    with torch.no_grad(), scaled_skips(model, ["model.layers.0.skip.0"], 0.5):
        skip = logits(model, batch)
    with torch.no_grad(), scaled(model, ["model.layers.0.self_attn"], 0.5):
        assert not torch.allclose(skip, logits(model, batch))


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        one = torch.relu(self.conv1(x) + 1.0)
        return self.conv2(torch.cat([one, one.tanh()], dim=1))


def test_a_network_without_a_skip_says_so() -> None:
    """Sums with a number and concatenations are none."""
    for model, example in ((Chain(), None), (nn.Sequential(nn.Linear(2, 2)), {"input": torch.zeros(1, 2)})):
        with pytest.raises(BadInput, match=r"has no skip connection.*another granularity"):
            named_layers(model, "skip", example=example)


def test_a_network_of_unknown_input_or_that_does_not_run_says_so() -> None:
    with pytest.raises(BadInput, match=r"nothing says what it takes; give `example`"):
        named_layers(Loop(), "skip")
    with pytest.raises(BadInput, match=r"it does not run on x of shape \(1, 7\) \(.*\); give `example`"):
        named_layers(Loop(), "skip", example={"x": torch.zeros(1, 7)})


def test_unknown_skips_are_named_with_the_nearest() -> None:
    model = build("cifar-resnet")
    with pytest.raises(UnknownName, match=r"did you mean 'layer1\.0\.skip'"), scaled_skips(model, ["layer1.0.skp"], 0):
        pass


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.adds = nn.Linear(4, 4), True

    def forward(self, x):
        return x + self.part(x) if self.adds else self.part(x)


def test_a_network_that_takes_another_path_is_not_passed_over() -> None:
    model, x = Moody(), torch.zeros(1, 4)
    before = full_state(model)
    with scaled_skips(model, ["skip"], 0, example={"x": x}):
        model.adds = False
        with pytest.raises(BadInput, match=r"Moody made 0 additions, where its skip was number 1"):
            model(x)
    model.adds = True
    assert same_state(before, full_state(model))


def test_all_is_undone_after_an_exception() -> None:
    model, batch = build("cifar-resnet"), forward_batch("cifar-resnet")
    before, truth = full_state(model), logits(model, batch)
    with pytest.raises(KeyboardInterrupt), scaled_skips(model, named_layers(model, "skip"), 0):
        model.layer2[0].bn1.register_forward_hook(lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        logits(model, batch)
    model.layer2[0].bn1._forward_hooks.clear()
    assert same_state(before, full_state(model)) and torch.equal(logits(model, batch), truth)


def test_skips_are_listed_without_weights() -> None:
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    assert len(named_layers(model, "skip")) == 6
