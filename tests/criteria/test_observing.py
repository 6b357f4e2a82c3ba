"""One pass for several criteria; positions that count; nothing depends on padding, batches or order."""

import numpy as np
import pytest
import torch

from keylayers import criteria
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.hidden_states import HiddenStates
from keylayers.criteria.support.observers import ObservingCriterion, observe_together
from keylayers.errors import BadInput, Diverged, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.naming import named_layers
from keylayers.measures.objective import language_loss
from tests import tiny_models
from tests.criteria.streams import mixing, rotation, same, states, stream

OBSERVING = [name for name in criteria.CRITERIA if isinstance(criteria.get(name), ObservingCriterion)]
FOUR = ("cka_shift", "component_shift", "block_influence", "angular_distance")


def together(evidence: Evidence, layers, **settings):
    """Scores of the four, with settings by criterion name."""
    asked = {name: (one := criteria.get(name), settings.get(name, one.settings())) for name in FOUR}
    return observe_together(evidence, layers, asked)


def text(size: int, pad: int = 0, left: bool = False) -> list[dict[str, torch.Tensor]]:
    """Eight records of 5 to 12 tokens, in batches of `size`, with `pad` more positions of padding than needed."""
    generator = torch.Generator().manual_seed(7)
    records = [torch.randint(3, 96, (length,), generator=generator) for length in range(5, 13)]
    batches = []
    for at in range(0, len(records), size):
        some = records[at : at + size]
        width = max(map(len, some)) + pad
        batch = {
            "input_ids": torch.full((len(some), width), 9),  # not the padding token: only the mask tells
            "attention_mask": torch.zeros(len(some), width, dtype=torch.long),
            "labels": torch.full((len(some), width), -100),
        }
        for row, ids in enumerate(some):
            inside = slice(width - len(ids), width) if left else slice(0, len(ids))
            batch["input_ids"][row, inside] = ids
            batch["attention_mask"][row, inside] = 1
            batch["labels"][row, inside] = torch.where(torch.arange(len(ids)) < 3, -100, ids)
        batches.append(batch)
    return batches


def test_together_is_the_same_as_alone_in_one_pass() -> None:
    model = tiny_models.build("llama")
    calls = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    model.lm_head.register_forward_pre_hook(lambda module, args: pytest.fail("computed the head"))
    evidence, layers = Evidence(model=model, data=text(4)), named_layers(model, "block")
    found = together(evidence, layers)
    assert len(calls) == 2 and tuple(found) == FOUR
    for name in FOUR:
        alone = criteria.get(name)(evidence, layers)
        np.testing.assert_array_equal(found[name].values, alone.values)
        assert alone.granularity == evidence.granularity and found[name].provenance.seconds > 0


@pytest.mark.parametrize("position", ["prompt", "last", "mean", "all"])
def test_padding_batches_and_order_change_nothing(position: str) -> None:
    model = tiny_models.build("llama").double()
    layers = named_layers(model, "block")
    wanted = [name for name in FOUR if not (position == "all" and name == "component_shift")]
    asked = {name: (one := criteria.get(name), one.settings(position=position)) for name in wanted}
    expected = observe_together(Evidence(model=model, data=text(8)), layers, asked)
    others = {"small batches": text(3), "padding": text(2, pad=4), "padding on the left": text(4, left=True)}
    if position != "all":  # there CKA is estimated from groups of tokens
        others["order"] = [{key: value.flip(0) for key, value in batch.items()} for batch in text(3)[::-1]]
    for what, data in others.items():
        found = observe_together(Evidence(model=model, data=data), layers, asked)
        for name in wanted:
            np.testing.assert_allclose(found[name].values, expected[name].values, atol=1e-9, err_msg=f"{name}, {what}")


def test_positions_are_those_of_the_mask_and_the_labels() -> None:
    model = tiny_models.build("llama")
    layers = named_layers(model, "block")
    batch = text(8)[0]
    with torch.no_grad(), capture(model, layers) as captured:
        language_loss(model, batch)
    seen = HiddenStates(model, batch, layers, captured)
    out = captured.outputs[layers[1].name]
    for row, length in enumerate(range(5, 13)):
        assert torch.equal(seen.rows(1, "after", "prompt")[row], out[row, 2])  # three tokens of prompt
        assert torch.equal(seen.rows(1, "after", "last")[row], out[row, length - 1])
        torch.testing.assert_close(seen.rows(1, "after", "mean")[row], out[row, :length].mean(0))
    assert len(seen.rows(1, "after", "all")) == sum(range(5, 13))
    assert seen.rows(1, "after", "last") is seen.rows(2, "before", "last")
    plain = {**batch, "labels": torch.where(torch.arange(12) == 0, -100, batch["input_ids"])}  # no prompt at all
    whole = HiddenStates(model, plain, layers, captured)
    assert torch.equal(whole.rows(1, "after", "prompt"), seen.rows(1, "after", "last"))


def test_of_several_turns_the_last_prompt_counts() -> None:
    model = tiny_models.build("llama")
    layers = named_layers(model, "block")
    ids = torch.randint(3, 96, (1, 10))
    labels = torch.tensor([[-100, -100, 5, 5, -100, -100, 6, 6, -100, -100]])  # two answers, then a closing mark
    batch = {"input_ids": ids, "labels": labels}
    with torch.no_grad(), capture(model, layers) as captured:
        language_loss(model, batch)
    seen = HiddenStates(model, batch, layers, captured)
    assert torch.equal(seen.rows(0, "after", "prompt")[0], captured.outputs[layers[0].name][0, 5])


def test_encoder_and_decoder_have_streams_and_paddings_of_their_own() -> None:
    model = tiny_models.build("t5")
    layers = named_layers(model, "block")
    batch = text(8)[0]
    batch["input_ids"] = batch["input_ids"].flip(1)  # an encoder reads something else than the answer
    with torch.no_grad(), capture(model, layers) as captured:
        language_loss(model, batch)
    seen = HiddenStates(model, batch, layers, captured)
    assert len(seen.rows(0, "after", "all")) == sum(range(5, 13))
    assert len(seen.rows(3, "after", "all")) == sum(range(5, 13)) - 8 * 3  # supervised
    assert torch.equal(seen.rows(3, "after", "prompt")[2], captured.outputs[layers[3].name][2, 3])


@pytest.mark.parametrize("name", OBSERVING)
def test_other_layers_than_blocks_are_refused(name: str) -> None:
    model = tiny_models.build("llama")
    evidence = Evidence(model=model, data=text(4))
    with pytest.raises(
        BadInput, match=rf"{name} can score blocks alone, but .*q_proj is a layer of granularity 'linear'"
    ):
        criteria.get(name)(evidence, named_layers(model, "linear"))


@pytest.mark.parametrize("name", OBSERVING)
def test_some_of_the_blocks_score_as_among_all(name: str) -> None:
    model = tiny_models.build("llama")
    evidence, layers = Evidence(model=model, data=text(4), granularity="block"), named_layers(model, "block")
    settings = {"token_clusters": {"clusters": 4}}.get(name, {})
    criterion = criteria.get(name)
    both = [criterion(evidence, some, criterion.settings(**settings)) for some in (layers, layers[1:])]
    np.testing.assert_array_equal(both[0].values[1:], both[1].values)


def test_hidden_states_that_are_not_finite_name_their_block() -> None:
    evidence, layers = stream([same, lambda hidden: hidden / 0, same], states())
    for name in FOUR:
        with pytest.raises(Diverged, match=r"hidden states of block layers\.1 are not finite"):
            criteria.get(name)(evidence, layers)


def test_what_cannot_be_scored_is_refused() -> None:
    evidence, layers = stream([same, mixing(0.3)], states())
    for name in FOUR:
        criterion = criteria.get(name)
        with pytest.raises(UnknownName, match="position 'lst'; did you mean 'last'"):
            criterion(evidence, layers, criterion.settings(position="lst"))
    nothing = {"inputs_embeds": states(4), "attention_mask": torch.zeros(4, 5)}
    with pytest.raises(BadInput, match="no position to count"):
        criteria.get("block_influence")(Evidence(model=evidence.model, data=[nothing], loss=evidence.loss), layers)
    pixels = [{"inputs": states(4)}]

    def feed(model, batch):
        return model(batch["inputs"]), 1

    with pytest.raises(BadInput, match="position='last' asks for a token, and this data has none"):
        criteria.get("angular_distance")(Evidence(model=evidence.model, data=pixels, loss=feed), layers)
    alike = [{"inputs_embeds": states(1).repeat(6, 1, 1)}]
    with pytest.raises(BadInput, match=r"hidden states at block layers\.0 are the same for all 6 records"):
        criteria.get("cka_shift")(Evidence(model=evidence.model, data=alike, loss=evidence.loss), layers)


def test_an_identity_block_scores_zero_and_rotations_what_their_angle_says() -> None:
    turn = rotation()
    doings = [mixing(1.0), same, lambda hidden: 3 * hidden, lambda hidden: hidden @ turn, mixing(0.1)]
    evidence, layers = stream(doings, states())
    cka = criteria.get("cka_shift")
    found = together(evidence, layers, cka_shift=cka.settings(variant="input"))
    influence, angle = found["block_influence"].values, found["angular_distance"].values
    assert influence[1] == angle[1] == 0
    assert influence[2] == pytest.approx(0, abs=1e-12) and angle[2] == pytest.approx(0, abs=1e-7)
    assert influence[3] > 0.1 and angle[3] > 0.1
    np.testing.assert_allclose(found["cka_shift"].values[1:4], 0, atol=1e-12)
    assert found["cka_shift"].values[0] > found["cka_shift"].values[4] > 1e-6


@pytest.mark.parametrize("name", FOUR)
def test_rotating_or_scaling_the_whole_stream_changes_nothing(name: str) -> None:
    turn = rotation()
    doings = [mixing(0.7), mixing(0.2, seed=5), mixing(1.5, seed=6)]

    def turned(doing):
        return lambda hidden: 5 * doing(hidden @ turn.T / 5) @ turn

    plain, layers = stream(doings, states())
    other, _ = stream([turned(doing) for doing in doings], 5 * states() @ turn)
    criterion = criteria.get(name)
    np.testing.assert_allclose(criterion(other, layers).values, criterion(plain, layers).values, atol=1e-9)


@pytest.mark.parametrize("name", ["cka_shift", "component_shift"])
def test_a_planted_change_point_is_found(name: str) -> None:
    """Blocks that hardly change anything, but for one that puts other directions in front."""
    swap = torch.diag(torch.tensor([1e-2, 1e-2, 1e-2, 1e-2, 30, 30, 30, 30], dtype=torch.float64))
    doings = [mixing(0.02, seed=10 + index) for index in range(9)]
    doings[5] = lambda hidden: hidden @ swap
    strengths = torch.tensor([8, 4, 2, 1, 2, 1, 0.5, 0.25], dtype=torch.float64)  # so that components are distinct
    evidence, layers = stream(doings, states(60) * strengths)
    criterion = criteria.get(name)
    scores = criterion(evidence, layers, criterion.settings(position="last"))
    assert set(scores.order()[:2]) == {4, 5}  # the blocks on both sides of the change
    apart = np.sort(scores.values)[-2] - np.sort(scores.values)[-3]
    assert apart > 5 * scores.values[[0, 1, 2, 7, 8]].max()
    low, high = scores.interval().T
    assert (low <= scores.values).all() and (scores.values <= high).all() and low[5] > high[1]
