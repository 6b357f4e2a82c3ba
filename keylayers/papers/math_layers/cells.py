"""What the cells of the study compute: a post-trained variant of a base, and what every block is worth to a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from keylayers.criteria.ablation import Ablation, score_ablation
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.token_clusters import TokenClusters, score_token_clusters
from keylayers.data import Examples, tokenise
from keylayers.data.batches import batches
from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.measures.accuracy import exact_match, greedy_matches
from keylayers.measures.loss import example_losses
from keylayers.measures.measure import Measure, wrong_answers
from keylayers.models.loading import LoadedModel, load_model
from keylayers.papers.math_layers import post_training as tuning_of
from keylayers.papers.math_layers.post_training import LONGEST, Tuning
from keylayers.papers.math_layers.probes import CHAIN, draw_probes
from keylayers.runs import digest, read_tensors, write_tensors
from keylayers.runs.quiet import quiet_libraries
from keylayers.training.trainer import TrainSettings
from keylayers.world.chains import Chain

INSTRUCTED, DISTILLED, REWARDED = "instructed", "distilled", "rewarded"
VARIANTS = (INSTRUCTED, DISTILLED, REWARDED)
"""Tuned on instructions, distilled from a teacher, reinforced by a verifiable reward."""

SIZE = 32  # records of a batch
HELD_OUT = 128  # records on which a variant is compared with its base


def compute(folder: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: `do` says which of the functions below, the other fields are its arguments."""
    quiet_libraries()
    given = {key: value for key, value in fields.items() if key != "do"}
    return DO[fields["do"]](Path(folder), **given)


def tuning_fields(tuning: Tuning) -> dict[str, Any]:
    """As plain JSON, for a cell."""
    return asdict(tuning)


def tuning_from(fields: Mapping[str, Any]) -> Tuning:
    """Back from plain JSON."""
    read: dict[str, Any] = {}
    for key, value in fields.items():
        whole = TrainSettings(**value) if isinstance(value, Mapping) else value
        read[key] = tuple(whole) if isinstance(whole, list) else whole
    return Tuning(**read)


def teacher(folder: Path, *, model: str, tuning: Mapping[str, Any]) -> dict[str, Any]:
    """A base that was taught longer chains; the weights stay in the folder."""
    began, loaded, settings = perf_counter(), load_model(model), tuning_from(tuning)
    before = _exact(loaded, settings.taught)
    tuning_of.taught(loaded.model, loaded.tokenizer, settings, seed=0)
    file = _store(folder, loaded.model, "teacher", model, 0, tuning)
    return {
        "file": file, "exact": _exact(loaded, settings.taught), "exact_before": before,
        "seconds": perf_counter() - began,
    }  # fmt: skip


def variant(
    folder: Path, *, kind: str, model: str, seed: int, tuning: Mapping[str, Any], taught_by: Mapping[str, str] | None
) -> dict[str, Any]:
    """A variant of a base, stored in the folder, and how it differs from the base on held-out records of its own task.

    `cost` and `cost_before` are what the training should lower: the loss of instructions and the divergence from the
    teacher in nats per token, or the share of chains whose greedy answer has a wrong result. `moved` is the divergence
    of its predictions from the base's on these records, nats per token, `changed` the relative change of the weights.
    """
    began, settings = perf_counter(), tuning_from(tuning)
    base, tuned = load_model(model), load_model(model)
    source = None if taught_by is None else loaded_variant(taught_by["model"], folder, taught_by["file"]).model
    notes: dict[str, Any] = {}
    if kind == INSTRUCTED:
        held = tokenise(tuning_of.instructions("test", each=HELD_OUT // 7), base.tokenizer, max_length=LONGEST)
        cost = partial(_losses, held)
        tuning_of.instructed(tuned.model, tuned.tokenizer, settings, seed)
    elif kind == DISTILLED:
        assert source is not None
        asked = tuning_of.problems("test", settings.taught, HELD_OUT, seed=51)
        held = tuning_of.written(source, base.tokenizer, asked, seed=52)
        cost = partial(_divergence, held, source)
        tuning_of.distilled(tuned.model, source, tuned.tokenizer, settings, seed)
        notes = {"exact": _exact(tuned, settings.taught), "exact_before": _exact(base, settings.taught)}
    elif kind == REWARDED:
        lengths = between(_exact(base, settings.offered, "calibration"), *settings.between)
        asked = tuning_of.problems("test", lengths, HELD_OUT, seed=53)
        held = tokenise(tuning_of.records_of(asked), base.tokenizer, max_length=LONGEST)
        cost = partial(wrong_results, asked, base.tokenizer)
        rewards = tuning_of.rewarded(tuned.model, tuned.tokenizer, settings, seed, lengths)
        notes = {"rewards": rewards, "steps": list(lengths)}
    else:
        raise BadInput(f"variant {kind!r}: expected {', '.join(VARIANTS)}.")
    file = _store(folder, tuned.model, kind, model, seed, tuning)
    return {
        "file": file, "cost_before": float(np.mean(cost(base.model))), "cost": float(np.mean(cost(tuned.model))),
        "moved": float(np.mean(_divergence(held, base.model, tuned.model))),
        "changed": _changed(base.model, tuned.model), "seconds": perf_counter() - began, **notes,
    }  # fmt: skip


def profile(
    folder: Path, *, model: str, file: str | None, seed: int, seeds: int, records: int, clusters: int, tokens: int
) -> dict[str, Any]:
    """What every block of a model (a base, or the variant in `file`) is worth to each probe, and its token clusters.

    Per probe: `loss` (nats per token) and `exact` (share of greedy answers that are right) of the whole model, and per
    block by how much the one rises and the other falls without it.
    """
    began, loaded = perf_counter(), loaded_variant(model, folder, file)
    asked = draw_probes(loaded.tokenizer, seed, seeds, records)
    found: dict[str, Any] = {"probes": {}, "lengths": {str(key): value for key, value in asked.lengths.items()}}
    for name, examples in asked.examples.items():
        found["probes"][name] = worth(loaded.model, examples)
    layers = named_layers(loaded.model, "block")
    evidence = Evidence(
        model=loaded.model, data=batches(asked.examples[CHAIN], SIZE, shuffle=False), granularity="block"
    )
    settings = TokenClusters(clusters=clusters, tokens=tokens, seed=seed)
    notes = score_token_clusters(evidence, layers, settings).provenance.settings
    for key in ("curve_normalised", "curve_adjusted", "elbow", "elbow_confidence"):
        found[key] = notes.get(key)
    if found["elbow"] is not None:
        found["elbow"] = [layer.name for layer in layers].index(found["elbow"])
    return {**found, "seconds": perf_counter() - began}


def worth(model: nn.Module, examples: Examples) -> dict[str, Any]:
    """Loss and share of right answers of a model, and what each falls short of without each block (the identity).

    By `ablation`, twice: of the loss, and of answers by teacher forcing, which are right just when greedy decoding
    would write them.
    """
    # deviates: the paper samples 50 answers at T = 0.7; here greedy answers by teacher forcing, which have no sampling
    # error and cost one forward pass.
    layers = named_layers(model, "block")
    evidence = Evidence(model=model, data=batches(examples, SIZE, shuffle=False), granularity="block")
    loss = score_ablation(evidence, layers, Ablation())
    wrong = score_ablation(replace(evidence, measure=Measure("answers", by_batch=wrong_answers)), layers, Ablation())
    return {
        "loss": loss.provenance.settings["cost"], "exact": fmean(greedy_matches(model, examples)),
        "loss_damage": loss.values.tolist(), "exact_damage": wrong.values.tolist(),
    }  # fmt: skip


def loaded_variant(model: str, folder: Path, file: str | None) -> LoadedModel:
    """A base, with the weights stored below the folder where a file is given."""
    loaded = load_model(model)
    if file is not None:
        tensors, _ = read_tensors(folder / file)
        loaded.model.load_state_dict(tensors)
    return loaded


def _store(folder: Path, model: nn.Module, kind: str, base: str, seed: int, tuning: Mapping[str, Any]) -> str:
    meta = {"kind": kind, "base": base, "seed": seed, "tuning": dict(tuning)}
    name = f"{kind}-{base.rpartition(':')[2].replace('/', '-')}-seed{seed}-{digest(meta)[:10]}.safetensors"
    write_tensors(folder / "variants" / name, model.state_dict(), meta)
    return f"variants/{name}"


Costs = Float[np.ndarray, " records"]


def _losses(held: Examples, model: nn.Module) -> Costs:
    found = example_losses(model, held)
    return found.nats / found.tokens


def wrong_results(asked: Sequence[Chain], tokenizer: Any, model: nn.Module) -> Costs:
    """1 for each chain whose greedy answer does not end with its result, however that is reached, as it is rewarded."""
    records = tuning_of.records_of(asked)
    answers = exact_match(model, tokenizer, records, max_new_tokens=tuning_of.ANSWER).answers
    pairs = zip(answers, asked, strict=True)
    return np.array([tuning_of.result_of(answer) != one.values[-1] for answer, one in pairs], dtype=float)


def _divergence(held: Examples, reference: nn.Module, model: nn.Module) -> Costs:
    import torch

    with torch.no_grad():
        pairs = [tuning_of.divergences(reference, model, batch) for batch in batches(held, SIZE, shuffle=False)]
    return np.concatenate([(nats / counts).double().numpy() for nats, counts in pairs])


def between(exact: Mapping[str, float], floor: float, ceiling: float) -> tuple[int, ...]:
    """The numbers of steps at which a model is right sometimes and wrong sometimes; without any, the nearest to half.

    Where all answers to a problem are right, or all wrong, none is better than the others and nothing is learnt; and
    where nearly all are right, there is little to learn.
    """
    found = tuple(int(steps) for steps, share in exact.items() if floor <= share <= ceiling)
    return found or (int(min(exact, key=lambda steps: abs(exact[steps] - 0.5))),)


def _exact(loaded: LoadedModel, lengths: Sequence[int], split: str = "test") -> dict[str, float]:
    """Share of whole chains answered exactly, by their number of steps."""
    found = {}
    for length in lengths:
        asked = tuning_of.records_of(tuning_of.problems(split, (length,), HELD_OUT // 2, seed=54))
        held = tokenise(asked, loaded.tokenizer, max_length=LONGEST)
        found[str(length)] = fmean(greedy_matches(loaded.model, held))
    return found


def _changed(base: nn.Module, tuned: nn.Module) -> float:
    """Norm of the change of all weights over their norm."""
    pairs = list(zip(base.parameters(), tuned.parameters(), strict=True))
    change = sum(float((after - before).detach().double().square().sum()) for before, after in pairs)
    return float(np.sqrt(change / sum(float(before.detach().double().square().sum()) for before, _ in pairs)))


DO: dict[str, Callable[..., dict[str, Any]]] = {"teacher": teacher, "variant": variant, "profile": profile}
