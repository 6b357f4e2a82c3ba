"""A tiny Llama with a tokenizer, and data for it, on disk as a user has them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from keylayers.inputs.text import Inputs
from keylayers.recipes.score_request import ScoreRequest
from keylayers.training.adapters import LoraSettings
from keylayers.training.trainer import TrainSettings
from tests.data.bpe import byte_level

BLOCKS = 3


@dataclass(frozen=True)
class World:
    """Where things lie."""

    model: Path
    data: Path

    def inputs(self, **changes) -> Inputs:
        """The world's own, cut short."""
        return Inputs(**{"model": str(self.model), "data": str(self.data), "held_out": 8, "max_length": 32, **changes})


def make(folder: Path, blocks: int = BLOCKS, seed: int = 0) -> World:
    """Writes a checkpoint with tokenizer, and 80 records."""
    import transformers as hf

    tokenizer = byte_level()
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, num_hidden_layers=blocks, pad_token_id=0, **shape
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    colours = ("red", "green", "blue", "yellow")
    rows = [
        {"prompt": f"Name colour {index}.", "completion": f" It is {colours[index % 4]}, of course."}
        for index in range(80)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(folder / "model", folder / "data.jsonl")


def request(world: World, *criteria: str, **changes) -> ScoreRequest:
    """A scoring request of a few steps."""
    inputs = changes.pop("inputs", world.inputs())
    given = {
        "settings": {"steps": 4, "points": 2, "save_every": 2} if "learned_mask" in criteria else {},
        "stage_one": TrainSettings(steps=4, batch_size=4, learning_rate=1e-2, save_every=2),
        "lora": LoraSettings(rank=2, alpha=4.0),
        "batch_size": 4,
        **changes,
    }
    if "path_integral" not in criteria:
        given["settings"] = {key: value for key, value in given["settings"].items() if key != "points"}
    return ScoreRequest(inputs=inputs, criteria=criteria, **given)
