"""Components removed: known directions, what each way takes away, and nothing left behind."""

import pytest
import torch

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.naming import named_layers
from keylayers.models.loading import load_model
from keylayers.papers.data_oblivious.component_removal import Components, principal, prompt_rows, without_components


def test_the_strongest_directions_are_found_with_their_share():
    axes = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    scores = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([5.0, 2.0, 0.1])
    found = principal(scores @ axes[:, :3].T + 7.0, 2)
    assert (found.directions.T @ axes[:, 2]).abs().max() < 0.05
    assert found.directions.T @ found.directions == pytest.approx(torch.eye(2), abs=1e-5)
    assert found.share == pytest.approx(1.0, abs=0.01)
    with pytest.raises(BadInput, match="components=6: "):
        principal(scores @ axes[:, :3].T, 6)


@pytest.fixture(scope="module")
def model(world):
    return load_model(str(world.model)).model


def _seen(model, ids, past=None):
    name = named_layers(model, "block")[2].name
    with torch.no_grad(), capture(model, [name]) as captured:
        out = model(input_ids=ids, past_key_values=past, use_cache=True)
    return captured.inputs[name], out.past_key_values  # what block 2 is given is what leaves block 1


def test_each_way_takes_away_what_it_says(model):
    block = named_layers(model, "block")[1]
    ids = torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(2))
    after = torch.randint(5, 100, (3, 1), generator=torch.Generator().manual_seed(3))
    plain, past = _seen(model, ids)
    later, _ = _seen(model, after, past)
    found = principal(torch.randn(40, 16, generator=torch.Generator().manual_seed(4)), 3)
    part = (plain[:, -1] - found.mean) @ found.directions @ found.directions.T
    taken = {}
    for way in ("stored", "projected", "random"):
        with without_components(model, block, found, way, seed=0):
            prompt, past = _seen(model, ids)
            assert torch.equal(prompt[:, :-1], plain[:, :-1])
            taken[way] = plain[:, -1] - prompt[:, -1]
            with capture(model, [block.name]) as captured, torch.no_grad():
                model(input_ids=after, past_key_values=past, use_cache=True)
            kept = captured.outputs[block.name][:, -1]
        assert kept.shape == later[:, -1].shape
    assert taken["stored"] == pytest.approx(part, abs=1e-5) and taken["projected"] == pytest.approx(part, abs=1e-5)
    assert taken["random"].norm(dim=1) == pytest.approx(part.norm(dim=1), rel=1e-4)
    directions = taken["random"] / taken["random"].norm(dim=1, keepdim=True)
    assert directions[0] == pytest.approx(directions[1], abs=1e-4)
    assert torch.equal(_seen(model, ids)[0], plain)  # nothing stays behind


def test_written_tokens_lose_the_prompts_part_or_their_own():
    torch.manual_seed(0)
    block = torch.nn.Identity()
    network = torch.nn.Sequential(block)
    found = Components(torch.zeros(4), torch.eye(4)[:, :2], 1.0)
    prompt, token = torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    with without_components(network, "0", found, "stored", seed=0):
        network(prompt)
        stored = network(token)
    with without_components(network, "0", found, "projected", seed=0):
        network(prompt)
        projected = network(token)
    kept = torch.tensor([1.0, 1, 0, 0])
    assert torch.allclose(stored, token - (prompt[:, -1:] * kept)) and torch.allclose(projected, token * (1 - kept))
    with (
        pytest.raises(UnknownName, match="unknown way of removing 'store'; did you mean 'stored'"),
        without_components(network, "0", found, "store", seed=0),
    ):
        pass


def test_the_control_is_a_mean_over_directions(world, monkeypatch):
    from contextlib import contextmanager

    from keylayers.measures.accuracy import Accuracy
    from keylayers.papers.data_oblivious import component_removal as module
    from keylayers.studies.text_task import Task, load_task
    from keylayers.training.trainer import TrainSettings

    place, seeds = load_task(Task("small", world.inputs(), TrainSettings(steps=1)).fields()), []

    @contextmanager
    def noted(model, block, found, way, seed):
        seeds.append((way, seed))
        yield

    def answered(model, tokenizer, records, max_new_tokens):
        """The first prompt gets as many words as directions were tried, the others one."""
        return Accuracy((True, False), ("a " * len(seeds), "b"))

    monkeypatch.setattr(module, "without_components", noted)
    monkeypatch.setattr(module, "exact_match", answered)
    given = {"block": 1, "components": 2, "records": 2, "new_tokens": 3}
    found = module.removal(place, None, way="random", **given)
    assert len(set(seeds)) == module.DIRECTIONS >= 5 and {way for way, _ in seeds} == {"random"}
    assert found["words"] == [3, 1] and found["exact"] == 0.5
    seeds.clear()
    assert module.removal(place, None, way="stored", **given)["words"] == [1, 1] and len(seeds) == 1


def test_rows_are_those_of_the_prompts_last_tokens(world, model):
    from keylayers.studies.text_task import Task, load_task
    from keylayers.training.trainer import TrainSettings

    place = load_task(Task("small", world.inputs(), TrainSettings(steps=1)).fields())
    layer = named_layers(place.loaded.model, "block")[1]
    rows = prompt_rows(place, layer)
    one = place.data.calibration.take([0])
    end = next(at for at, label in enumerate(one.labels[0]) if label != -100)
    with torch.no_grad(), capture(place.loaded.model, [layer.name]) as captured:
        place.loaded.model(input_ids=torch.tensor([one.input_ids[0][:end]]))
    distances = (rows - captured.outputs[layer.name][0, -1]).norm(dim=1)
    assert len(rows) == len(place.data.calibration) and float(distances.min()) < 1e-4
