"""One training run: deterministic, resumed bit for bit, stopped when it diverges, no deeper than it must go."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from keylayers.actions.freezing import tuning_only
from keylayers.data.tokenisation import Examples
from keylayers.errors import BadInput, Diverged, UnknownName
from keylayers.training.states import forget
from keylayers.training.trainer import TrainSettings, hold_statistics, train
from tests.tiny_models import build
from tests.training.small import block, examples, same, weights

SHORT = TrainSettings(steps=6, batch_size=4, learning_rate=1e-2, save_every=2)


class Stop(Exception):
    """What a test interrupts a run with."""


def stopping_at(step: int):
    def report(done: int, steps: int, loss: float) -> None:
        if done == step:
            raise Stop

    return report


def trained(folder=None, settings=SHORT, report=None, name="llama", model=None):
    model = model or build(name)
    with tuning_only(model, block(model, 1)):
        log = train(model, examples(), settings, folder=folder, report=report)
    return weights(model), log


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    first, log = trained()
    again, _ = trained()
    other, _ = trained(settings=dataclasses.replace(SHORT, seed=1))
    assert same(first, again) and not same(first, other)
    assert len(log.losses) == SHORT.steps and log.losses[-1] < log.losses[0]
    assert log.seconds > 0 and log.peak_bytes > 2**20


@pytest.mark.parametrize("name", ["llama", "olmoe", "gpt2"])  # olmoe stores its experts under other names
def test_a_run_interrupted_by_an_exception_resumes_bit_for_bit(name, tmp_path):
    whole, log = trained(name=name)
    with pytest.raises(Stop):
        trained(tmp_path, report=stopping_at(5), name=name)
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-4"]
    resumed, resumed_log = trained(tmp_path, name=name)
    assert same(whole, resumed)
    assert resumed_log.losses == log.losses


def uneven(count: int = 14) -> Examples:
    """Examples of 3 to 30 tokens, each of a length of its own; what is short is not what comes first."""
    each = [examples(1, 3 + 2 * ((5 * at) % count), seed=at) for at in range(count)]
    ids, labels = (tuple(getattr(some, name)[0] for some in each) for name in ("input_ids", "labels"))
    return Examples(ids, labels, ("",) * count, 0, each[0].report)


class Watched(nn.Module):
    """Keeps the shape of every batch it trains on, and which lengths are in it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(96)), []

    def forward(self, input_ids, attention_mask, labels):
        if self.training:
            self.seen.append((tuple(input_ids.shape), tuple(attention_mask.sum(1).tolist())))
        return {"loss": self.weight[input_ids].mean(), "logits": nn.functional.one_hot(input_ids, 96).float()}


def test_like_lengths_share_a_step_once_an_epoch_also_where_a_training_resumes(tmp_path):
    settings = dataclasses.replace(SHORT, steps=11)  # epochs of four steps: three whole ones and the rest
    whole, interrupted, resumed = Watched(), Watched(), Watched()
    log = train(whole, uneven(), settings)
    shapes, lengths = zip(*whole.seen, strict=True)
    for epoch in (0, 4):
        each = sorted(length for some in lengths[epoch : epoch + 4] for length in some)
        assert each == sorted(map(len, uneven().input_ids))
    assert len(set(lengths)) > 7, "groups are drawn anew"
    computed, real = sum(rows * columns for rows, columns in shapes), sum(map(sum, lengths))
    assert log.padding == pytest.approx(computed / real, abs=1e-4) and 1 < log.padding < 1.4
    with pytest.raises(Stop):
        train(interrupted, uneven(), settings, folder=tmp_path, report=stopping_at(7))
    train(resumed, uneven(), settings, folder=tmp_path)
    assert resumed.seen == whole.seen[6:]


@pytest.mark.parametrize("steps", [6, 4])  # the end of an epoch of 3 steps, and the middle of one
def test_a_finished_run_is_not_trained_again(steps, tmp_path):
    settings = dataclasses.replace(SHORT, steps=steps, schedule="constant")  # a cosine's last rate, 0, would hide it
    whole, log = trained(tmp_path, settings)
    seen = []
    again, again_log = trained(tmp_path, settings, report=lambda step, steps, loss: seen.append(step))
    assert same(whole, again) and again_log.losses == log.losses and not seen
    forget(tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_training_stopped_early_is_the_beginning_of_the_whole_one(tmp_path):
    """Its schedule is that of the whole, and it can be gone on with."""
    whole, log = trained()
    part = dataclasses.replace(SHORT, stop_after=3)
    begun, begun_log = trained(tmp_path, part)
    assert begun_log.losses == log.losses[:3] and not same(begun, whole)
    again, again_log = trained(tmp_path, part, report=lambda *_: pytest.fail("trained again"))
    assert same(again, begun) and again_log.losses == begun_log.losses
    rest, rest_log = trained(tmp_path)
    assert same(rest, whole) and rest_log.losses == log.losses


def test_a_state_holds_only_what_trains(tmp_path):
    from safetensors import safe_open

    trained(tmp_path)
    with safe_open(tmp_path / "checkpoint-6" / "trainable.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names and all(name.startswith("model.layers.1.") for name in names)


@pytest.mark.parametrize("victim", ["trainable.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_damaged_newest_state_is_left_out_with_a_note(victim, tmp_path, capsys):
    whole, _ = trained()
    with pytest.raises(Stop):
        trained(tmp_path, report=stopping_at(5))
    file = tmp_path / "checkpoint-4" / victim
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    steps = []
    resumed, _ = trained(tmp_path, report=lambda step, *_: steps.append(step))
    assert same(whole, resumed)
    assert steps[0] == 3
    assert "checkpoint-4" in (said := capsys.readouterr().err) and "damaged" in said


def test_a_state_that_was_being_written_is_left_out_and_the_run_starts_over_where_none_is_whole(tmp_path, capsys):
    whole, _ = trained()
    with pytest.raises(Stop):
        trained(tmp_path, report=stopping_at(3))
    (tmp_path / "checkpoint-2" / "seal.json").unlink()
    steps = []
    resumed, _ = trained(tmp_path, report=lambda step, *_: steps.append(step))
    assert same(whole, resumed) and steps[0] == 1
    assert "stopped while it was written" in capsys.readouterr().err


def test_a_state_of_another_selection_is_refused(tmp_path):
    with pytest.raises(Stop):
        trained(tmp_path, report=stopping_at(3))
    model = build("llama")
    with tuning_only(model, block(model, 0)), pytest.raises(BadInput, match="other tensors were trained"):
        train(model, examples(), SHORT, folder=tmp_path)


@pytest.mark.long
def test_runs_killed_at_any_moment_resume_bit_for_bit(tmp_path):
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["kills"] >= 4
    assert found["resumed"] == [found["whole"]] * len(found["resumed"])


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tmp_path):
    model = build("llama")

    def poison(step: int, steps: int, loss: float) -> None:
        if step == 3:
            with torch.no_grad():
                model.model.norm.weight.fill_(float("nan"))

    with pytest.raises(Diverged, match=r"nan at step 4 of 6; lower the learning rate .*0\.01"):
        trained(tmp_path, report=poison, model=model)
    assert not (tmp_path / "checkpoint-4").exists()
    assert not model.training and not any(module.training for module in model.modules())


def test_a_last_step_that_breaks_the_weights_is_noticed():
    model = build("llama")

    def poison(step: int, steps: int, loss: float) -> None:
        if step == 6:
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")

    with pytest.raises(Diverged, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not finite after the last step"):
        trained(report=poison, model=model)


def test_nothing_trainable_is_an_error():
    model = build("llama").requires_grad_(False)
    with pytest.raises(BadInput, match="no parameter is trainable"):
        train(model, examples(), SHORT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps=0`: expected a whole number of at least 1"),
        ({"stop_after": 201}, "stop after step 201: expected 1 to 200"),
        ({"warmup": 1.5}, "warmup=1.5`: expected a number of at least 0 and at most 1"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_made(change, said):
    with pytest.raises(BadInput, match=said):
        TrainSettings(**change)


def test_an_unknown_schedule_is_refused_with_near_names():
    model = build("llama")
    with pytest.raises(UnknownName, match="'cosin'; did you mean 'cosine'"):
        train(model, examples(), dataclasses.replace(SHORT, schedule="cosin"))


def test_accumulated_steps_equal_one_large_batch():
    whole, _ = trained(settings=dataclasses.replace(SHORT, batch_size=4, steps=3))
    parts, _ = trained(settings=dataclasses.replace(SHORT, batch_size=2, accumulate=2, steps=3))
    assert all(torch.allclose(whole[name], parts[name], atol=2e-4) for name in whole)


def reach(checkpointing: bool) -> tuple[dict, list[bool]]:
    """Weights after training block 2, and whether each block's output asked for gradients."""
    model = build("llama")
    asked = [False] * 3
    for index, layer in enumerate(model.model.layers):

        def look(module, args, output, index=index):
            asked[index] |= (output[0] if isinstance(output, tuple) else output).requires_grad

        layer.register_forward_hook(look)
    with tuning_only(model, block(model, 2)):
        train(model, examples(), dataclasses.replace(SHORT, checkpointing=checkpointing))
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return weights(model), asked


def test_checkpointing_changes_no_weight_and_makes_the_backward_pass_go_no_deeper():
    plain, asked = reach(False)
    saving, asked_too = reach(True)
    assert same(plain, saving)
    assert asked == asked_too == [False, False, True]


def test_checkpointing_works_under_its_older_name(monkeypatch):
    import transformers

    @dataclasses.dataclass
    class Older(transformers.TrainingArguments):
        """As before the option was renamed: the new name is no field."""

    fields = {key: value for key, value in Older.__dataclass_fields__.items() if "activation_checkpoint" not in key}
    monkeypatch.setattr(Older, "__dataclass_fields__", fields)
    monkeypatch.setattr(transformers, "TrainingArguments", Older)
    seen = {}
    check = Older.__init__
    monkeypatch.setattr(Older, "__init__", lambda self, **given: (seen.update(given), check(self, **given))[1])
    trained(settings=dataclasses.replace(SHORT, checkpointing=True, steps=1))
    assert seen["gradient_checkpointing"] is True and "activation_checkpointing" not in seen


class Normed(nn.Module):
    """A language model with batch norms: one beside what trains, one frozen, one without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 8)
        self.frozen, self.trained = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.plain = nn.BatchNorm1d(8, affine=False)
        self.head = nn.Linear(8, 96)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embed(input_ids).transpose(1, 2)
        logits = self.head(self.plain(self.trained(self.frozen(hidden))).transpose(1, 2))
        loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])
        return {"loss": loss, "logits": logits}


def test_frozen_batch_norms_keep_their_running_statistics():
    torch.manual_seed(0)
    model = Normed()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("trained", "head")))
    before = weights(model)
    train(model, examples(), SHORT)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {f"trained.{key}" for key in model.trained.state_dict()} | {"head.weight", "head.bias"}


def test_hold_statistics_serves_a_loop_of_ones_own():
    model = Normed().requires_grad_(False)
    model.head.requires_grad_(True)
    before = model.frozen.running_mean.clone()
    model.train()
    hold_statistics(model)
    model(input_ids=torch.randint(0, 96, (4, 6)), labels=torch.randint(0, 96, (4, 6)))
    assert model.head.training and torch.equal(model.frozen.running_mean, before)


@pytest.mark.parametrize("whole", [True, False])
def test_a_norm_without_parameters_is_held_where_anything_is_frozen(whole: bool):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3, affine=False), torch.nn.Linear(3, 2))
    model[2].requires_grad_(whole)
    model.train()
    hold_statistics(model)
    model(torch.randn(8, 3))
    assert bool(model[1].running_mean.any()) == whole


def test_what_is_unfrozen_once_training_runs_never_trains_and_flags_set_before_do():
    """transformers makes its optimiser once; so does `train`, and says so."""
    model = build("llama")

    def late(step: int, steps: int, loss: float) -> None:
        if step == 2:
            model.model.layers[0].requires_grad_(True)

    start = weights(model)
    end, _ = trained(report=late, model=model)
    assert all(torch.equal(end[name], start[name]) for name in end if ".layers.0." in name)
    model = build("llama")
    with tuning_only(model, block(model, 0, 1)):
        train(model, examples(), SHORT)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, start["model.layers.0.mlp.up_proj.weight"])


class Dying(Watched):
    """Whatever its input, it predicts the same; its loss is finite."""

    def forward(self, input_ids, attention_mask, labels):
        flat = torch.zeros(*input_ids.shape, 96)
        return {"loss": self.weight[input_ids].mean(), "logits": flat}


def test_a_training_that_leaves_a_dead_model_is_no_result():
    with pytest.raises(Diverged, match=r"whatever it is given: it is dead.*4\.5643 nats\).*`learning_rate`, now"):
        train(Dying(), uneven(), dataclasses.replace(SHORT, steps=1))
