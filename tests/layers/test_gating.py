import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.adapted import deltas_from_adapter, unloaded
from keylayers.layers.deltas import Deltas, DenseDelta, deltas_from_checkpoints
from keylayers.layers.gating import frozen, gate_gradients, gated
from keylayers.layers.naming import named_layers
from keylayers.layers.tensor_swap import swapped, tensors_swapped
from tests.layers.helpers import finest, forward_batch, full_state, logits, pair, same_state, with_lora
from tests.tiny_models import ALL, build

SOME = ["llama-tied", "gpt2", "phi3", "olmoe", "gpt-oss", "t5", "bert", "vit", "cifar-resnet"]


def dense_case(name: str) -> tuple[nn.Module, Tensor, Deltas]:
    """Base model, logits of its fully tuned version, deltas."""
    base, tuned = pair(name)
    with torch.no_grad():
        wanted = logits(tuned, forward_batch(name))
    return base, wanted, deltas_from_checkpoints(base, tuned, named_layers(base, finest(name)))


def lora_case(name: str) -> tuple[nn.Module, Tensor, Deltas]:
    """Base model, logits with its adapter, deltas."""
    base = build(name)
    layers = named_layers(base, finest(name))
    adapted = with_lora(base)
    with torch.no_grad():
        wanted = logits(adapted, forward_batch(name))
    deltas = deltas_from_adapter(adapted, layers)
    return unloaded(adapted), wanted, deltas


CASES = {"dense": dense_case, "lora": lora_case}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", CASES)
def test_gates_of_one_are_the_tuned_model_and_of_zero_the_base(case: str, name: str) -> None:
    base, wanted, deltas = CASES[case](name)
    batch, before = forward_batch(name), full_state(base)
    with torch.no_grad():
        native = logits(base, batch)
        assert (native - wanted).abs().max() > 1e-2, "the tuned model must differ for this test to mean anything"
        with gated(base, deltas, deltas.uniform(1.0), 1.0):
            assert (logits(base, batch) - wanted).abs().max() <= 1e-5
        with gated(base, deltas, deltas.uniform(0.0), 0.0):
            assert (logits(base, batch) - native).abs().max() <= 1e-5
        assert torch.equal(logits(base, batch), native)
    assert same_state(before, full_state(base))
    assert all(deltas.changes), "every layer was tuned"
    assert deltas.low_rank == (case == "lora" and not any(n.endswith(("experts.down_proj",)) for n in _names(deltas))
                               and finest(name) == "linear")  # fmt: skip


def _names(deltas: Deltas) -> list[str]:
    return [name for change in deltas.changes for name in change]


# Without casts to fp32 inside, so that float64 is float64 throughout.
PRECISE = ["gpt2", "bert", "vit", "cifar-resnet"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SOME)
def test_gradients_equal_finite_differences(case: str, name: str) -> None:
    base, _, deltas = CASES[case](name)
    batch, step, tolerance, dtype = forward_batch(name), 2e-3, 2e-2, torch.float32
    if name in PRECISE:
        base, deltas, step, tolerance, dtype = base.double(), _doubled(deltas), 1e-6, 1e-4, torch.float64
        batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    for module in base.modules():
        if hasattr(module, "top_k"):
            module.top_k = 4  # all experts: choosing among them makes the loss jump
    gates = (0.3 + 0.4 * torch.rand(len(deltas.layers), dtype=dtype)).requires_grad_()
    rest = torch.tensor(0.6, dtype=dtype, requires_grad=True)

    def loss(values: Tensor, remainder: Tensor) -> Tensor:
        with gated(base, deltas, values, remainder):
            return logits(base, batch).double().square().sum()

    def difference(direction: Tensor, outside: float) -> float:
        """Fourth-order central difference along a direction of the gates and the remainder."""
        with torch.no_grad():
            ends = [loss(gates + k * step * direction, rest + k * step * outside) for k in (-2, -1, 1, 2)]
        return float(ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step)

    with frozen(base):
        loss(gates, rest).backward()
        unit = torch.eye(len(gates), dtype=dtype)
        scale = float(gates.grad.abs().max())
        for index in {0, len(gates) // 2, len(gates) - 1, int(gates.grad.abs().argmax())}:
            assert float(gates.grad[index]) == pytest.approx(
                difference(unit[index], 0), rel=tolerance, abs=tolerance * scale
            )
        if case == "dense" and "resnet" not in name:  # running statistics carry no gradient
            expected = difference(torch.zeros(len(gates), dtype=dtype), 1)
            assert float(rest.grad) == pytest.approx(expected, rel=tolerance, abs=tolerance * scale)
    assert scale > 0


def _doubled(deltas: Deltas) -> Deltas:
    """Low-rank factors in float64; dense changes take the model's precision by themselves."""
    from dataclasses import replace

    def doubled(change: dict) -> dict:
        return {
            name: delta
            if isinstance(delta, DenseDelta)
            else replace(delta, up=delta.up.double(), down=delta.down.double())
            for name, delta in change.items()
        }

    return Deltas(deltas.layers, tuple(map(doubled, deltas.changes)), doubled(deltas.remainder))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SOME)
def test_gate_gradients_equal_autograd_through_gated(case: str, name: str) -> None:
    base, _, deltas = CASES[case](name)
    batches = [forward_batch(name, batch=1), forward_batch(name, batch=2, seq=5, seed=1)]
    gates = torch.full((len(deltas.layers),), 0.4, requires_grad=True)
    rest = torch.tensor(0.4, requires_grad=True)

    def run_backward() -> None:
        for batch in batches:
            logits(base, batch).square().sum().backward()

    before = full_state(base)
    with frozen(base):
        values, remainder = gate_gradients(base, deltas, 0.4, run_backward)
        with gated(base, deltas, gates, rest):
            run_backward()
    assert values.dtype == torch.float64
    scale = float(gates.grad.abs().max())
    assert scale > 0
    assert torch.allclose(values.float(), gates.grad, rtol=1e-3, atol=1e-4 * scale)
    assert remainder == pytest.approx(0.0 if rest.grad is None else float(rest.grad), rel=1e-3, abs=1e-3 * scale)
    assert same_state(before, full_state(base))


def test_gates_from_a_function_are_asked_for_once_per_pass() -> None:
    base, wanted, deltas = lora_case("llama")
    calls = []

    def gates() -> Tensor:
        calls.append(1)
        return deltas.uniform(float(len(calls) > 1))

    batch = forward_batch("llama")
    with torch.no_grad():
        native = logits(base, batch)
        with gated(base, deltas, gates):
            assert torch.allclose(logits(base, batch), native, atol=1e-5)
            assert torch.allclose(logits(base, batch), wanted, atol=1e-5)
    assert len(calls) == 2


@pytest.mark.parametrize("case", CASES)
def test_one_block_serves_an_optimisation_with_batches_of_any_shape(case: str) -> None:
    base, _, deltas = CASES[case]("qwen2")
    scores = torch.zeros(len(deltas.layers), requires_grad=True)
    optimiser = torch.optim.SGD([scores], lr=0.5)
    seen = []
    with frozen(base), gated(base, deltas, lambda: torch.sigmoid(scores)):
        for step, (size, seq) in enumerate([(1, 3), (4, 9), (2, 5), (1, 3)]):
            before = scores.detach().clone()
            loss = logits(base, forward_batch("qwen2", batch=size, seq=seq, seed=step)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seen.append(float(loss.detach()))
            assert torch.isfinite(scores).all() and not torch.equal(scores.detach(), before)
            with torch.no_grad():  # a look without gradients in between must not go stale
                probe = logits(base, forward_batch("qwen2", batch=1, seq=4))
        gates = torch.sigmoid(scores.detach())
    with torch.no_grad(), gated(base, deltas, gates):
        latest = logits(base, forward_batch("qwen2", batch=1, seq=4))
    assert len(set(seen)) == 4 and torch.allclose(probe, latest, atol=1e-5)


def test_without_gradients_a_moved_gate_is_seen() -> None:
    base, wanted, deltas = dense_case("llama")
    gates, batch = deltas.uniform(0.0), forward_batch("llama")
    with torch.no_grad(), gated(base, deltas, lambda: gates):
        zero = logits(base, batch)
        assert torch.equal(logits(base, batch), zero)
        gates[3] = 1.0
        third = logits(base, batch)
        gates[:] = 1.0
        assert torch.allclose(logits(base, batch), wanted, atol=1e-5)
    assert not torch.allclose(zero, third)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "t5", "bert"])
def test_a_tied_weight_changes_everywhere(name: str) -> None:
    base, tuned = pair(name)
    layers = named_layers(base, "linear", tied=True)
    deltas = deltas_from_checkpoints(base, tuned, layers)
    head = next(index for index, layer in enumerate(layers) if layer.tied_to)
    assert set(deltas.changes[head]) == {layers[head].tied_to} | set(layers[head].parameters[1:]) & set(_names(deltas))
    assert layers[head].tied_to not in deltas.remainder
    gates, batch = deltas.uniform(0.0), forward_batch(name)
    gates[head] = 1.0
    expected = copy.deepcopy(base)
    embedding = tuned.get_input_embeddings().weight
    with torch.no_grad():
        expected.get_input_embeddings().weight.copy_(embedding)
        for key in deltas.changes[head]:
            expected.get_parameter(key).copy_(tuned.get_parameter(key))
        with gated(base, deltas, gates, 0.0):
            assert torch.allclose(logits(base, batch), logits(expected, batch), atol=1e-5)
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight


@pytest.mark.parametrize("name", ["olmoe", "gpt-oss"])
def test_experts_have_gates_of_their_own(name: str) -> None:
    base, tuned = pair(name)
    experts = named_layers(base, "expert")
    deltas = deltas_from_checkpoints(base, tuned, experts)
    assert all(deltas.changes) and not any("experts" in key for key in deltas.remainder)
    chosen, batch = 5, forward_batch(name)  # block 1, expert 1
    gates = deltas.uniform(0.0)
    gates[chosen] = 1.0
    expected = copy.deepcopy(base)
    with torch.no_grad():
        for key in experts[chosen].parameters:
            whole, slot = key.split("[")[0], int(key.split("[")[1].rstrip("]"))
            expected.get_parameter(whole)[slot] = tuned.get_parameter(whole)[slot]
        with gated(base, deltas, gates, 0.0):
            assert torch.allclose(logits(base, batch), logits(expected, batch), atol=1e-5)
    learned = torch.full((len(experts),), 0.5, requires_grad=True)

    def run_backward() -> None:
        logits(base, batch).square().sum().backward()

    with frozen(base):
        with gated(base, deltas, learned, 0.5):
            run_backward()
        values, _ = gate_gradients(base, deltas, 0.5, run_backward)
    assert torch.allclose(values.float(), learned.grad, rtol=1e-3, atol=1e-3) and values.abs().max() > 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(case: str, reentrant: bool) -> None:
    base, _, deltas = CASES[case]("llama")
    batch = forward_batch("llama")

    def gradients(model: nn.Module) -> Tensor:
        gates = torch.full((len(deltas.layers),), 0.7, requires_grad=True)
        with frozen(model):
            model.train()  # transformers checkpoints only in training mode; this model has no dropout
            with gated(model, deltas, gates):
                embedded = model.get_input_embeddings()(batch["input_ids"]).requires_grad_()
                model(inputs_embeds=embedded).logits.square().sum().backward()
        return gates.grad

    plain = gradients(base)
    recomputed = []
    handle = base.model.layers[1].mlp.register_forward_pre_hook(lambda *_: recomputed.append(1))
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert torch.allclose(gradients(base), plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    assert len(recomputed) == 2, "the block must have run twice"
    base.gradient_checkpointing_disable()
    handle.remove()
    for index, block in enumerate(list(base.model.layers)):
        base.model.layers[index] = checkpoint_wrapper(block)
    assert torch.allclose(gradients(base), plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["llama", "olmoe", "cifar-resnet"])
def test_a_bf16_model_gives_its_tuned_version(case: str, name: str) -> None:
    base, _, deltas = CASES[case](name)
    base = base.bfloat16()
    batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in forward_batch(name).items()}
    merged = copy.deepcopy(base)
    named = dict(merged.named_parameters()) | dict(merged.named_buffers())
    with torch.no_grad():
        for change in (*deltas.changes, deltas.remainder):
            for key, delta in change.items():
                named[key] += delta.dense().bfloat16()
        wanted = logits(merged, batch).float()
        gates = deltas.uniform(1.0).requires_grad_()
    with frozen(base), gated(base, deltas, gates):
        out = logits(base, batch)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert (out.float() - wanted).abs().max() <= 0.05 * wanted.abs().max()
    assert gates.grad.dtype == torch.float32 and torch.isfinite(gates.grad).all()


@pytest.mark.parametrize("how", ["body", "forward", "gates", "length"])
@pytest.mark.parametrize("case", CASES)
def test_the_model_is_whole_again_after_an_exception(case: str, how: str) -> None:
    base, _, deltas = CASES[case]("gpt2")
    before = full_state(base)

    def gates() -> Tensor:
        if how == "gates":
            raise KeyError("mine")
        return deltas.uniform(0.5)[: -1 if how == "length" else None]

    with pytest.raises((KeyError, BadInput, TypeError, ValueError)), gated(base, deltas, gates):
        logits(base, {"nonsense": 1} if how == "forward" else forward_batch("gpt2"))
        raise KeyError("mine")
    assert same_state(before, full_state(base))


def test_a_wrong_number_of_gates_is_refused() -> None:
    base, _, deltas = lora_case("llama")
    with pytest.raises(BadInput, match="3 gates for 22 layers"), gated(base, deltas, torch.ones(3)):
        logits(base, forward_batch("llama"))


def test_deltas_of_another_model_are_refused() -> None:
    for case in CASES.values():
        _, _, deltas = case("gpt2")
        with pytest.raises(UnknownName), gated(build("llama"), deltas, deltas.uniform(1.0)):
            pass


def test_the_running_statistics_of_a_network_in_training_mode_stay() -> None:
    """In training mode batch norms write; they must write into the stand-ins and not into the model."""
    base, _, deltas = dense_case("cifar-resnet")
    before = {key: value.clone() for key, value in base.state_dict().items() if "running" in key}
    base.train()
    with torch.no_grad(), gated(base, deltas, deltas.uniform(1.0)):
        logits(base, forward_batch("cifar-resnet"))
    after = base.state_dict()
    assert len(before) == 26 and all(torch.equal(value, after[key]) for key, value in before.items())


def test_frozen_puts_back_flags_and_gradients() -> None:
    model = build("llama").train()
    model.model.layers[0].eval()
    first, second, *_ = model.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    kept, before = second.grad, full_state(model)
    with pytest.raises(KeyError), frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
        second.grad = None
        raise KeyError("mine")
    assert second.grad is kept
    assert same_state(before, full_state(model))


@pytest.mark.parametrize("build_values", [lambda m: {}, lambda m: {"fc.weight": torch.zeros(2, 2)}])
def test_swapped_puts_tensors_in_and_takes_them_out(build_values: Callable) -> None:
    model = nn.Module()
    model.fc = nn.Linear(2, 2)
    model.forward = lambda x: model.fc(x)
    before, values = full_state(model), build_values(model)
    with swapped(model, values):
        assert (model.fc.weight is values["fc.weight"]) if values else True
        assert torch.equal(model(torch.zeros(1, 2))[0], model.fc.bias)
    assert same_state(before, full_state(model))


def test_placing_names_what_is_not_there() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'fc\.weight'"):
        model = nn.Module()
        model.fc = nn.Linear(2, 2)
        with tensors_swapped(model, ["fc.weigth"]):
            pass
