"""Run folders as the commands leave them, written by hand: real files, made-up figures, no model."""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from keylayers.layers.layer import Layer
from keylayers.runs import open_run, write_json
from keylayers.scores import LayerScores, Provenance, save, select

BLOCKS, KINDS = 4, ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
LAYERS = (
    *(
        Layer(f"model.layers.{b}.{kind}", b, kind, (f"model.layers.{b}.{kind}.weight",), 64 + 32 * k)
        for b in range(BLOCKS)
        for k, kind in enumerate(KINDS)
    ),
    Layer("lm_head", None, "lm_head", ("lm_head.weight",), 300),
)
INPUTS = {"model": "some/model", "data": "some/data.jsonl"}
ARMS = ("top:30%", "random:30%:match=params", "all")


def scores(seed: int = 0, criterion: str = "path_integral", *, repeats: int = 4, layers=LAYERS, **provenance):
    """Scores with a wide range, so that tiers of every sort occur; without intervals where repeats are 0."""
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.linspace(-0.2, 2.0, len(layers)))
    noise = generator.normal(scale=0.08, size=(repeats, len(layers)))
    data = tuple({"id": INPUTS["data"], "split": part, "sha256": part[0] * 64, "records": 32} for part in ("train",))
    drop = {"loss_base": 40.0, "loss_tuned": 20.0, "completeness_error": 0.01} if criterion == "path_integral" else {}
    origin = {"model": {"id": INPUTS["model"]}, "data": data, "settings": drop, "seconds": 2.5, **provenance}
    return LayerScores(
        tuple(layers),
        values,
        criterion,
        "linear",
        Provenance(**origin),
        repeats=values + noise if repeats else None,
    )


@contextmanager
def arguments(*words: str):
    """A command line for the run's record."""
    before, sys.argv = sys.argv, ["keylayers", *words]
    try:
        yield
    finally:
        sys.argv = before


def score_run(folder: Path, *several: LayerScores, inputs=INPUTS, **more) -> Path:
    """A scoring run with these scores, by default one criterion with intervals and one without."""
    several = several or (scores(), scores(1, "delta_norm", repeats=0))
    settings = {"inputs": inputs, "criteria": [one.criterion for one in several], "granularity": "linear", **more}
    with arguments("score", *settings["criteria"], "--out", str(folder)), open_run(folder, "score", settings) as run:
        for one in several:
            save(one, folder / f"{one.criterion}.json")
        run.part("stage1", lambda: {"losses": [5.0, 3.0, 2.5], "train_seconds": 7.0, "peak_bytes": 3 * 2**20})
    return folder


def result(names, seed: int, loss: float, share: float = 0.3) -> dict:
    """What a tuning run stores of one arm and seed."""
    return {
        "test_loss": loss,
        "calibration_loss": loss + 0.01,
        "train_losses": [4.0 + 0.1 * seed, 3.0, loss],
        "seconds": 11.0 + seed,
        "peak_bytes": 5 * 2**20,
        "trainable": 1234,
        "size_share": share,
        "layers": list(names),
        "untouched": 99,
    }


LOSSES = {"top:30%": (2.0, 2.1, 2.2), "random:30%:match=params": (2.5, 2.65, 2.7), "all": (1.9, 2.2, 2.1)}


def tune_run(folder: Path, *, seeds: int = 3, arms=ARMS, finished: bool = True, chosen_by=None, inputs=INPUTS) -> Path:
    """A tuning run; an unfinished one lacks its last arm, the last seed of the arm before it, and the comparison."""
    from keylayers.recipes.tune import _name

    chosen_by = chosen_by or scores()
    settings = {
        "inputs": inputs,
        "select": arms[0],
        "against": list(arms[1:]),
        "seeds": seeds,
        "scores": chosen_by.sha256,
    }
    records = []
    with arguments("tune", "--out", str(folder)), open_run(folder, "tune", settings) as run:
        run.part("base", lambda: {"loss": 6.0})
        for place, policy in enumerate(arms):
            names = select(chosen_by, policy if policy != "random:30%:match=params" else f"{policy}:seed=1",
                           allow_total=True).names  # fmt: skip
            losses = LOSSES.get(policy, (3.0, 3.1, 3.3))[:seeds]
            missing = 0 if finished else {len(arms) - 1: seeds, len(arms) - 2: 1}.get(place, 0)
            for seed, loss in enumerate(losses[: seeds - missing]):
                run.part(_name(policy, seed, 0.01), lambda n=names, s=seed, v=loss: result(n, s, v))
            records.append(
                {"policy": policy, "losses": losses, "learning_rate": 0.01, "layers": len(names), "size_share": 0.3}
                | {"trainable": 1234, "seconds": 12.0, "peak_bytes": 5 * 2**20}
            )
        if finished:
            write_json(folder / "comparison.json", {"base_loss": 6.0, "arms": records})
            save(chosen_by, folder / "scores.json")
    return folder


def demo_runs(folder: Path) -> Path:
    """Two scoring runs and a tuning run side by side, as the demo leaves them."""
    first = scores()
    score_run(folder / "pirate", first, scores(1, "delta_norm", repeats=0))
    other = {"data": ({"id": "other.jsonl", "sha256": "0f" * 32, "split": "train", "records": 9},)}
    score_run(folder / "formal", scores(2, **other), scores(3, "delta_norm", repeats=0, **other))
    tune_run(folder / "tuning", chosen_by=first)
    return folder


def compare_run(folder: Path, *several: LayerScores, acted: str = "top", labels=None) -> Path:
    """A comparison of rankings."""
    labels = labels or [one.criterion for one in several]
    settings = {"files": labels, "labels": labels, "scores": [one.sha256 for one in several], "top": 0.3,
                "acted": acted}  # fmt: skip
    with arguments("compare", *labels), open_run(folder, "compare", settings):
        (folder / "scores").mkdir()
        for place, one in enumerate(several, 1):
            save(one, folder / "scores" / f"{place:03d}.json")
    return folder
