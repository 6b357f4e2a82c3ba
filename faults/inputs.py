"""Small inputs, made once: a model of two blocks, a tuned one, records, two rankings, images of digits."""

import json
import random
import shutil
from pathlib import Path

SUBJECTS = "the cat,a sailor,my aunt,the old judge,a robot,the moon,every child,the cook".split(",")
VERBS = "sees,wants,hides,paints,counts,forgets,carries,sells".split(",")
OBJECTS = "a red boat,the last apple,nine keys,some rain,a paper crown,the long road,warm bread,a map".split(",")
LAYERS = tuple(
    f"model.layers.{block}.{name}"
    for block in range(2)
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
)
HIDDEN, WIDE = 32, 48


def make_inputs(folder: Path, heavy: bool) -> None:
    """Writes them all; without `heavy`, only those that need no torch."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_records(folder / "records.jsonl")
    _write_scores(folder)
    (folder / "settings.yaml").write_text("max_length: 32\nbatch_size: 4\n")
    if heavy:
        _write_models(folder)
        _write_images(folder)


def _write_records(path: Path) -> None:
    draws = random.Random(0)
    lines = []
    for _ in range(48):
        subject, verb, thing = (draws.choice(words) for words in (SUBJECTS, VERBS, OBJECTS))
        lines.append(json.dumps({"prompt": f"Say that {subject} {verb} {thing}.", "completion": f"Arr, {thing}!"}))
    path.write_text("\n".join(lines) + "\n")


def _write_scores(folder: Path) -> None:
    """Two rankings of the model's layers, drawn."""
    from keylayers.layers.layer import Layer
    from keylayers.scores import LayerScores, Provenance, save

    layers = []
    for name in LAYERS:
        narrow, kind = "self_attn" in name, ".".join(name.split(".")[-2:])
        size, lora_size = (HIDDEN * HIDDEN, 2 * HIDDEN) if narrow else (HIDDEN * WIDE, HIDDEN + WIDE)
        layers.append(Layer(name, int(name.split(".")[2]), kind, (f"{name}.weight",), size, lora_size))
    for name in ("first", "second"):
        draws = random.Random(name)
        noted = Provenance(model={"id": str(folder / "model")})
        save(LayerScores(tuple(layers), [draws.random() for _ in layers], f"drawn_{name}", "linear", noted),
             folder / f"{name}.json")  # fmt: skip


def _write_models(folder: Path) -> None:
    """A random model, and the same one after it learnt the records by heart for a while."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from keylayers.models.sources import local_folder

    config = LlamaConfig(
        vocab_size=1280,
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    tokenizer = AutoTokenizer.from_pretrained(local_folder("bundled:llama"))
    _save(model, folder / "model")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for record in records * 2:
        ids = tokenizer(record["prompt"] + record["completion"], return_tensors="pt").input_ids
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    _save(model, folder / "tuned")


def _save(model, folder: Path) -> None:  # type: ignore[no-untyped-def]
    from keylayers.models.sources import local_folder

    model.save_pretrained(folder)
    bundled = local_folder("bundled:llama")
    assert bundled is not None
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / file, folder / file)


def _write_images(folder: Path) -> None:
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)
    np.savez(folder / "clean.npz", x=images[:240], y=digits.target[:240])
    np.savez(folder / "stream.npz", x=images[240:300])
