"""Ablation: closed forms, planted truths, and every number against weights that really were zeroed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.criteria.ablation import Ablation, score_ablation
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.spans import split_windows
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.naming import named_layers
from keylayers.measures.measure import Measure, measure_named, wrong_answers, wrong_tokens
from keylayers.measures.objective import language_loss
from tests import tiny_models
from tests.criteria.examples import batches_of, squared_loss
from tests.layers.helpers import full_state, same_state
from tests.layers.test_ablating import silenced_copy


class Residual(nn.Module):
    """Blocks that add to a residual stream; only the block `solving` makes what the head reads."""

    def __init__(self, solving: int, blocks: int = 4, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 2, bias=False)
        with torch.no_grad():
            for index, block in enumerate(self.blocks):
                block.out.weight.mul_(1.0 if index == solving else 0.05)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.out(torch.tanh(3 * self.into(hidden_states)))


def solved_by(block: int, blocks: int = 4) -> Evidence:
    """The answers are those of the model in which only that block does anything; float64."""
    model = Residual(block, blocks).double()
    only = copy.deepcopy(model)
    with torch.no_grad():
        for index, one in enumerate(only.blocks):
            if index != block:
                one.out.weight.zero_()
                one.out.bias.zero_()
        generator = torch.Generator().manual_seed(2)
        data = [{"x": torch.randn(rows, 6, generator=generator, dtype=torch.float64)} for rows in (5, 9, 7)]
        data = [{**batch, "y": only(batch["x"])} for batch in data]
    return Evidence(model=model, data=data, loss=squared_loss, granularity="block")


def text_evidence(name: str, granularity: str, **more) -> Evidence:
    return Evidence(model=tiny_models.build(name), data=batches_of(name), granularity=granularity, **more)


def mean_loss(model: nn.Module, evidence: Evidence) -> float:
    with torch.no_grad():
        pairs = [evidence.loss(model, batch) for batch in evidence.data]
    return sum(float(loss) for loss, _ in pairs) / sum(count for _, count in pairs)


@pytest.mark.parametrize("block", range(4))
def test_the_block_that_alone_solves_the_task_ranks_first(block: int) -> None:
    evidence = solved_by(block)
    scores = score_ablation(evidence, named_layers(evidence.model, "block"))
    assert scores.order()[0] == block and scores.values[block] > 3 * np.delete(scores.values, block).max()
    assert scores.repeats.shape == (3, 4)


def test_a_block_that_is_an_identity_scores_zero() -> None:
    evidence = text_evidence("llama", "block")
    with torch.no_grad():
        evidence.model.model.layers[1].self_attn.o_proj.weight.zero_()
        evidence.model.model.layers[1].mlp.down_proj.weight.zero_()
    for how in ("zero", "mean", "resample"):
        values = score_ablation(evidence, named_layers(evidence.model, "block"), Ablation(how)).values
        assert values[1] == 0 and np.abs(values[[0, 2]]).min() > 1e-5


@pytest.mark.parametrize("name", [*tiny_models.LANGUAGE, "vit"])
def test_scores_are_those_of_models_whose_sublayers_were_zeroed_by_hand(name: str) -> None:
    evidence = text_evidence(name, "sublayer") if name != "vit" else image_evidence("sublayer")
    layers = named_layers(evidence.model, "sublayer")[::2]
    before = full_state(evidence.model)
    scores = score_ablation(evidence, layers)
    assert same_state(before, full_state(evidence.model))
    whole = mean_loss(evidence.model, evidence)
    for layer, value in zip(layers, scores.values, strict=True):
        first, *rest = layer.name.split("+")
        names = [first, *(f"{first.rpartition('.')[0]}.{one}" for one in rest)]
        assert value == pytest.approx(mean_loss(silenced_copy(evidence.model, names), evidence) - whole, abs=2e-6)


def image_evidence(granularity: str) -> Evidence:
    from keylayers.measures.objective import image_loss

    return replace(text_evidence("vit", granularity), loss=image_loss)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "olmoe", "t5"])
def test_blocks_of_zeroed_weights_and_a_window_of_them(name: str) -> None:
    evidence = text_evidence(name, "block")
    layers = named_layers(evidence.model, "block")
    whole = mean_loss(evidence.model, evidence)
    for width in (1, 2):
        scores = score_ablation(evidence, layers, Ablation(window=width))
        for places, value in zip(split_windows(layers, width), scores.values, strict=True):
            edited = silenced_copy(evidence.model, [layers[place].name for place in places])
            assert value == pytest.approx(mean_loss(edited, evidence) - whole, abs=2e-6)


def test_windows_are_of_one_size_of_one_kind_and_of_one_stack() -> None:
    blocks = named_layers(tiny_models.build("cifar-resnet"), "block")
    assert [layer.name.rpartition(".")[0] for layer in blocks] == ["layer1"] * 2 + ["layer2"] * 2 + ["layer3"] * 2
    assert split_windows(blocks, 2) == [(0, 1), (0, 1), (2, 3), (2, 3), (4, 5), (4, 5)]
    t5 = named_layers(tiny_models.build("t5"), "block")
    assert split_windows(t5, 2) == [(0, 1), (0, 1), (2, 3), (2, 3)]
    llama = named_layers(tiny_models.build("llama"), "sublayer")  # attention and mlp of three blocks
    assert split_windows(llama, 2) == [(0, 2), (1, 3), (2, 4), (3, 5), (2, 4), (3, 5)]
    assert split_windows(llama, 1) == [(0,), (1,), (2,), (3,), (4,), (5,)]
    five = [replace(blocks[0], name=f"h.{index}", block=index) for index in range(5)]
    assert split_windows(five, 3) == [(0, 1, 2), (0, 1, 2), (1, 2, 3), (2, 3, 4), (2, 3, 4)]
    with pytest.raises(BadInput, match="window=5` covers all 5 layers"):
        split_windows(five, 5)


@pytest.mark.parametrize("granularity", ["block", "sublayer", "linear"])
@pytest.mark.parametrize("settings", [Ablation(), Ablation("mean"), Ablation("resample"), Ablation(window=2)])
def test_as_many_blocks_are_computed_as_declared(granularity: str, settings: Ablation) -> None:
    evidence = text_evidence("llama", granularity)
    layers, calls = named_layers(evidence.model, granularity), []
    for block in evidence.model.model.layers:
        block.input_layernorm.register_forward_pre_hook(lambda *_: calls.append(1))
    score_ablation(evidence, layers, settings)
    assert len(calls) / 3 == pytest.approx(score_ablation.work(layers, settings, 2).all_forwards)


def test_resampling_depends_on_the_seed_alone_and_needs_another_record() -> None:
    evidence = text_evidence("llama", "block")
    evidence = replace(evidence, data=[tiny_models.inputs("llama", batch=6)])
    layers = named_layers(evidence.model, "block")
    values = [score_ablation(evidence, layers, Ablation("resample", seed=seed)).values.tolist() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    one = replace(evidence, data=[tiny_models.inputs("llama", batch=1)])
    with pytest.raises(BadInput, match="a batch holds only one"):
        score_ablation(one, layers, Ablation("resample"))
    with pytest.raises(UnknownName, match="did you mean 'mean'"):
        score_ablation(evidence, layers, Ablation("means"))  # type: ignore[arg-type]


def test_resampling_among_equal_records_changes_nothing() -> None:
    evidence = text_evidence("gpt2", "sublayer")
    one = tiny_models.inputs("gpt2", batch=1)
    same = replace(evidence, data=[{key: value.repeat(4, 1) for key, value in one.items()}])
    values = score_ablation(same, named_layers(evidence.model, "sublayer"), Ablation("resample")).values
    np.testing.assert_allclose(values, 0, atol=1e-6)


def test_a_mean_leaves_what_all_tokens_share() -> None:
    """A block whose contribution is one vector for every token loses nothing to its mean, and all to zero."""
    evidence = solved_by(1)
    with torch.no_grad():
        evidence.model.blocks[1].into.weight.zero_()  # what is left is a bias
    layers = named_layers(evidence.model, "block")
    zero, mean = (score_ablation(evidence, layers, Ablation(how)).values for how in ("zero", "mean"))
    assert abs(mean[1]) < 1e-12 < 1e-3 < abs(zero[1])


@pytest.mark.parametrize("name", ["hf-resnet", "cifar-resnet"])
def test_a_block_that_changes_the_shape_is_refused_by_name(name: str) -> None:
    evidence = text_evidence(name, "block")
    layers = named_layers(evidence.model, "block")
    with torch.no_grad(), capture(evidence.model, layers) as seen:
        evidence.model(**{key: value for key, value in evidence.data[0].items() if key != "labels"})
    kept = [layer for layer in layers if seen.inputs[layer.name].shape == seen.outputs[layer.name].shape]
    from keylayers.measures.objective import image_loss

    evidence = replace(evidence, loss=image_loss)
    assert len(kept) < len(layers) and np.isfinite(score_ablation(evidence, kept).values).all()
    before = full_state(evidence.model)
    with pytest.raises(BadInput, match=r"cannot be the identity; leave it out"):
        score_ablation(evidence, layers)
    assert same_state(before, full_state(evidence.model))


def trained_to_copy() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A tiny Llama that has learnt by heart what follows each of six prompts, nearly: some answers stay wrong."""
    model = tiny_models.build("llama")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 96, (6, 9), generator=generator)
    labels = ids.clone()
    labels[:, :5] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        optimiser.zero_grad()
        loss, count = language_loss(model, batch)
        (loss / count).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval(), [{key: value[:2] for key, value in batch.items()}, {k: v[2:] for k, v in batch.items()}]


def test_wrong_answers_are_those_that_greedy_generation_misses() -> None:
    """... and ablation by teacher forcing scores as ablation by generating does."""
    model, data = trained_to_copy()

    def generated(one: nn.Module) -> np.ndarray:
        wrong = []
        for batch in data:
            prompt, answer = batch["input_ids"][:, :5], batch["input_ids"][:, 5:]
            written = one.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=4,
                                   pad_token_id=0, eos_token_id=None)[:, 5:]  # fmt: skip
            wrong += (written != answer).any(1).tolist()
        return np.array(wrong, dtype=float)

    forced = [float(wrong_answers(model, batch)[0]) for batch in data]
    assert sum(forced) == generated(model).sum() and [wrong_answers(model, batch)[1] for batch in data] == [2, 4]
    layers = named_layers(model, "sublayer")
    common = {"model": model, "data": data, "granularity": "sublayer"}
    by_force = score_ablation(Evidence(**common, measure=measure_named("answers")), layers)
    by_hand = score_ablation(Evidence(**common, measure=Measure("generated", by_record=generated)), layers)
    np.testing.assert_allclose(by_force.values, by_hand.values, atol=1e-12)
    assert by_force.values.max() > 0 and by_hand.repeats.shape == (6, 6)
    assert by_hand.provenance.settings["measure"] == "generated"
    for batch in data:
        wrong, count = wrong_tokens(model, batch)
        assert count == 4 * len(batch["labels"]) and float(wrong_answers(model, batch)[0]) <= float(wrong)
    with pytest.raises(BadInput, match="'generated' does not keep together"):
        score_ablation(
            Evidence(**common, measure=Measure("generated", by_record=generated)), layers, Ablation("resample")
        )


def test_measures_by_name() -> None:
    assert measure_named("loss") is None and measure_named("tokens").by_batch is wrong_tokens
    with pytest.raises(UnknownName, match="did you mean 'answers'"):
        measure_named("answer")
    with pytest.raises(BadInput, match="'generated' needs a tokenizer and records"):
        measure_named("generated")
