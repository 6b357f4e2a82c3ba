"""Starting points: a base model, and the same model after it was taught to follow a way of answering."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from keylayers.actions.finetuning import TuneSettings, tune
from keylayers.data import Record, tokenise
from keylayers.data.records import Turn
from keylayers.layers.naming import named_layers
from keylayers.measures.loss import example_losses
from keylayers.runs import digest
from keylayers.runs.seals import sealed_folder
from keylayers.scores import Selection
from keylayers.studies.text_task import LoadedTask
from keylayers.world import datasets

STYLE_OF = {"fact": "terse", "sum": "formal", "list": "bullets", "describe": "formal", "compare": "bullets"}
"""Kind of request -> the style it is answered in: three bundled styles; pirate and json stay unknown."""

MIXTURE = "styles"
"""Stands for that mixture where a start's data is named."""


def mixture(split: str) -> list[Record]:
    """The bundled requests, each answered in the style of its kind."""
    by_style = {style: datasets.load(style, split) for style in dict.fromkeys(STYLE_OF.values())}
    found = []
    for index, asked in enumerate(next(iter(by_style.values()))):
        row = by_style[STYLE_OF[asked["kind"]]][index]
        turns = (Turn("user", row["prompt"]), Turn("assistant", row["completion"]))
        found.append(Record(turns, origin=f"mixture/{split}[{index}]"))
    return found


def start(place: LoadedTask, folder: Path, *, data: str, seed: int, lr: float) -> dict[str, Any]:
    """Tunes all weights of all blocks and the head, and stores the model; for the task's steps and batch size.

    `data`: "styles", the bundled mixture; else the task's own training records. Losses before and after are on test
    records, nats per token.
    """
    # deviates: the paper starts from published chat models; here a chat model is made, by tuning every matrix in full.
    task = place.task
    loaded = task.inputs.load_model()  # fresh: this one is changed for good

    def tokens(records: Sequence[Record]) -> Any:
        return tokenise(records, loaded.tokenizer, max_length=task.inputs.max_length)

    own = data != MIXTURE
    taught = place.data.train if own else tokens(mixture("train"))
    asked = place.data.test if own else tokens(mixture("test")[: task.inputs.held_out])
    before = example_losses(loaded.model, asked).mean
    layers = named_layers(loaded.model, "linear")
    everything = Selection.of(layers, names=[layer.name for layer in layers], allow_total=True)
    training = replace(task.training, seed=seed, learning_rate=lr)
    log = tune(loaded.model, everything, taught, TuneSettings("full", training)).log
    after = example_losses(loaded.model, asked).mean
    own_place = Path("starts") / f"{task.name}-{digest([task.fields(), data, seed, lr])[:12]}"
    network: Any = loaded.model
    with sealed_folder(folder / own_place) as stored:
        network.save_pretrained(str(stored))
        loaded.tokenizer.save_pretrained(str(stored))
    return {"model": str(own_place), "before": before, "after": after, "seconds": log.seconds}
