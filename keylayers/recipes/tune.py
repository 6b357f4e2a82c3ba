"""Tune selected layers and, beside them, other choices at the same steps and seeds; measure all on held-out data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from keylayers.actions.finetuning import TuneSettings, check_method, tune
from keylayers.actions.freezing import selected_parameters
from keylayers.data import Splits
from keylayers.errors import Diverged
from keylayers.files.atomic import remove, writing
from keylayers.inputs.reachable import scores_within_reach, within_adapters, within_reach
from keylayers.inputs.scores_fit import check_scores_fit
from keylayers.inputs.text import Inputs, Prepared, prepare_data, require_unseen
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.measures.blow_ups import best_rate, blown_up
from keylayers.measures.loss import example_losses
from keylayers.models.loading import LoadedModel
from keylayers.recipes.comparison import Arm, Comparison, with_interval
from keylayers.runs import Progress, RunFolder, digest, note
from keylayers.runs.seals import check_seal, sealed_folder
from keylayers.scores import LayerScores, Selection
from keylayers.scores.caveats import list_caveats
from keylayers.scores.seeded_policies import choose
from keylayers.settings import Count, Positive, Settings
from keylayers.training.adapters import lora_config, save_adapter
from keylayers.training.states import forget


@dataclass(frozen=True)
class TuneRequest(Settings):
    """What to tune and what to compare it with."""

    inputs: Inputs
    select: str = "top:30%"
    against: tuple[str, ...] = ()
    """Other policies, run at the same steps and seeds. `random` ones without a seed draw anew for every seed."""
    granularity: str = "linear"
    """Of the layers, where no scores are given."""
    settings: TuneSettings = field(default_factory=TuneSettings)
    learning_rates: tuple[Positive, ...] = ()
    """More than one: each arm tries all with every seed, and takes the one with the lowest mean calibration loss of
    those at which the fewest trainings blew up."""
    seeds: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_method(self.settings.method)

    @property
    def policies(self) -> tuple[str, ...]:
        """The policy asked for, then those it is compared with; each once."""
        return tuple(dict.fromkeys((self.select, *self.against)))

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates to choose among."""
        return tuple(dict.fromkeys(self.learning_rates)) or (self.settings.training.learning_rate,)


def compare_arms(request: TuneRequest, run: RunFolder, scores: LayerScores | None = None) -> Comparison:
    """Tunes every arm with every seed from the same start; what is finished is kept in the run folder.

    The first arm's model at the first seed, with its chosen learning rate, is stored as `tuned/`.

    Raises:
        BadScores, BadSelection, BadInput: before anything trains, if the scores are of another model, or a policy or
            the data does not fit.
    """
    splits = request.inputs.load_splits()
    outline = request.inputs.outline()
    data = None if outline is None else _checked(request, scores, outline, splits)  # before its weights are loaded
    loaded = _load(request)
    data = data or _checked(request, scores, loaded, splits)
    require_unseen(loaded, data)
    adapted = request.settings.method != "full"
    if scores is not None:
        scores = scores_within_reach(loaded.model, scores, data.train, adapted=adapted)
        layers = scores.layers
    else:
        layers = within_reach(loaded.model, named_layers(loaded.model, request.granularity), data.train)
        layers = within_adapters(loaded.model, layers) if adapted else layers
    selected = {policy: choose(scores, layers, policy, seed=0) for policy in request.policies}
    for selection in selected.values():
        _check(request, loaded.model, selection)
    _note_caveats(selected)
    work = _Work(request, run, scores, layers, data)
    base = run.part("base", lambda: {"loss": example_losses(loaded.model, work.data.test).mean})["loss"]
    before = run.part("base-calibration", lambda: {"loss": example_losses(loaded.model, work.data.calibration).mean})
    del loaded  # every arm loads its own
    note(f"held-out loss before tuning: {base:.4f} nats per token")
    arms = []
    trainings = len(request.policies) * request.seeds * len(request.rates)
    if len(request.rates) > 1:
        note(f"every arm tries {len(request.rates)} learning rates with every seed: {trainings} trainings")
    with Progress[int](trainings * request.settings.training.steps, "tuning") as bar:
        for policy in request.policies:
            tried = {
                rate: [work.result(policy, seed, rate, bar) for seed in range(request.seeds)] for rate in request.rates
            }
            rate, reasons = _best(policy, tried, before["loss"])
            arms.append(Arm.of(policy, rate, tried[rate], reasons))
            if policy == request.select:
                work.publish(rate)
            note(f"{policy}: held-out loss {with_interval(arms[-1].losses)}")
    return Comparison(base, tuple(arms))


def _best(
    policy: str, tried: Mapping[float, Sequence[Mapping[str, Any]]], before: float
) -> tuple[float, tuple[str, ...]]:
    """The learning rate that serves an arm, and for each seed why its training is taken to have blown up there.

    Raises:
        Diverged: if a training diverged at every rate.
    """
    losses = {rate: [result.get("calibration_loss", math.nan) for result in each] for rate, each in tried.items()}
    reasons = {
        rate: tuple(result.get("diverged") or reason for result, reason in zip(tried[rate], each, strict=True))
        for rate, each in blown_up(losses, before).items()
    }
    for rate, each in reasons.items():
        for seed, reason in enumerate(each):
            if reason:
                note(f"{policy}: the training of seed {seed} at learning rate {rate:g} blew up: {reason}")
    rate = best_rate(losses, reasons)
    if broken := [result["diverged"] for result in tried[rate] if "diverged" in result]:
        raise Diverged(f"{policy}: a training diverged at every learning rate that was offered; {broken[0]}")
    return rate, reasons[rate]


def _checked(request: TuneRequest, scores: LayerScores | None, model: LoadedModel, splits: Splits) -> Prepared:
    """The data as the model's tokens. Raises if the scores, a policy or the data does not go with the model."""
    if scores is not None:
        check_scores_fit(scores, model.model, request.inputs.model)
    layers = scores.layers if scores is not None else named_layers(model.model, request.granularity)
    for policy in request.policies:
        _check(request, model.model, choose(scores, layers, policy, seed=0))
    return prepare_data(request.inputs, model, splits)


def _check(request: TuneRequest, model: nn.Module, selection: Selection) -> None:
    """Raises BadSelection for a selection the method cannot train."""
    if request.settings.method == "full":
        selected_parameters(model, selection)
    else:
        lora_config(model, selection.chosen, request.settings.lora)


def _note_caveats(arms: Mapping[str, Selection]) -> None:
    """Says where arms are less than they seem: drawn among equals, or the same layers under two names."""
    for selection in arms.values():
        for caveat in list_caveats(selection):
            note(caveat)
    first, *others = arms
    for policy in others:
        if arms[policy].names == arms[first].names:
            note(
                f"{policy} chose the very layers of {first}: their difference is noise, and says nothing of the choice"
            )


def _load(request: TuneRequest) -> LoadedModel:
    return request.inputs.load_model(four_bit=request.settings.method == "qlora")


@dataclass(frozen=True)
class _Work:
    """What all arms share."""

    request: TuneRequest
    run: RunFolder
    scores: LayerScores | None
    layers: tuple[Layer, ...]
    data: Prepared

    def result(self, policy: str, seed: int, rate: float, bar: Any) -> dict[str, Any]:
        """What training one arm with one seed gave; trained once, read from the run folder ever after."""
        name, start, steps = _name(policy, seed, rate), bar.done, self.request.settings.training.steps

        def report(step: int, steps: int, loss: float) -> None:
            bar.advance(start + step - bar.done, text=f"{policy} loss {loss:.3f}")

        found = self.run.part(name, lambda: self._trained(policy, seed, rate, report))
        forget(self._folder(name))
        bar.advance(start + steps - bar.done, text=policy)
        return found

    def _trained(self, policy: str, seed: int, rate: float, report: Any) -> dict[str, Any]:
        """One of several rates may diverge: it is passed over, unless no other is left."""
        try:
            return self._train(policy, seed, rate, report)
        except Diverged as error:
            if len(self.request.rates) == 1:
                raise
            return {"diverged": str(error)}

    def publish(self, rate: float) -> None:
        """Makes the first arm's model the run's result; the models of other learning rates are deleted."""
        result = self.run.path / "tuned"
        for one in self.request.rates:
            kept = self._folder(_name(self.request.select, 0, one)) / "tuned"
            with writing(result):
                if one == rate and kept.exists():
                    check_seal(kept, "start over with `fresh`")
                    remove(result)
                    kept.rename(result)
                remove(kept)

    def _train(self, policy: str, seed: int, rate: float, report: Any) -> dict[str, Any]:
        request, folder = self.request, self._folder(_name(policy, seed, rate))
        loaded = _load(request)
        selection = choose(self.scores, self.layers, policy, seed)
        training = replace(request.settings.training, seed=seed, learning_rate=rate)
        tuned = tune(
            loaded.model,
            selection,
            self.data.train,
            replace(request.settings, training=training),
            folder=folder,
            report=report,
            announce=(lambda plan: note(f"{policy}: {plan}")) if seed == 0 else None,
        )
        if seed == 0:
            note(f"{policy}: {tuned.log.padding:.2f} tokens computed for each real one")
        held_out = example_losses(tuned.model, self.data.test)
        if policy == request.select and seed == 0:
            _store(tuned.model, loaded.tokenizer, request.settings.method, folder / "tuned")
        return {
            "test_loss": held_out.mean,
            "test_nats": held_out.nats.tolist(),
            "calibration_loss": example_losses(tuned.model, self.data.calibration).mean,
            "train_losses": list(tuned.log.losses),
            "seconds": tuned.log.seconds,
            "peak_bytes": tuned.log.peak_bytes,
            "padding": tuned.log.padding,
            "trainable": tuned.forecast.trainable,
            "size_share": selection.share_of_parameters,
            "layers": list(selection.names),
            "untouched": tuned.untouched,
        }

    def _folder(self, name: str) -> Path:
        return self.run.path / "arms" / name


def _store(model: Any, tokenizer: Any, method: str, folder: Path) -> None:
    """The tuned model as peft or transformers store it, sealed; the folder appears whole or not at all."""
    with sealed_folder(folder) as partial:
        if method == "full":
            model.save_pretrained(partial)
        else:
            save_adapter(model, partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def _name(policy: str, seed: int, rate: float) -> str:
    """Name of a part: the policy in characters that any file system takes."""
    plain = "".join(c if c.isalnum() or c in "-=." else "_" for c in policy.replace("%", "pc"))
    if len(plain) > 120:  # a long list of blocks
        plain = f"{plain[:100]}-{digest(policy)[:16]}"
    return f"{plain}-lr{rate}-seed{seed}"
