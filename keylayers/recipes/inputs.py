"""From what a user names (a model, data, a tuned version) to what criteria and actions take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keylayers.data import Examples, Splits, load_splits, tokenise
from keylayers.errors import BadInput
from keylayers.models.loading import LoadedModel, load_model
from keylayers.runs import note


@dataclass(frozen=True)
class Inputs:
    """A model and data as the user named them."""

    model: str = "bundled:llama"
    data: str = "bundled:pirate"
    weights: str | None = None
    """Safetensors for a model given as package.module:factory."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> the data's own column name."""
    max_length: int | None = None
    """Tokens a record is cut at; None: the model's context, at most 512."""
    records: int | None = None
    """Most training records; None: all."""
    held_out: int = 256
    """Most calibration and most test records."""
    split_seed: int = 0
    dtype: str = "auto"
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def load_model(self, *, four_bit: bool = False) -> LoadedModel:
        """The model, fresh from its source."""
        return load_model(
            self.model,
            weights=self.weights,
            dtype=self.dtype,
            four_bit=four_bit,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class Prepared:
    """The three disjoint parts of a data set as token sequences for one model."""

    train: Examples
    calibration: Examples
    test: Examples
    identity: tuple[dict[str, Any], ...]
    """What a score file says about the data."""


def prepare_data(inputs: Inputs, loaded: LoadedModel) -> Prepared:
    """Loads, splits and tokenises; says on standard error what the length limit cost.

    Raises:
        BadInput: as the data package does, or if the model has no tokenizer.
    """
    if loaded.tokenizer is None:
        raise BadInput(
            f"{inputs.model} has no tokenizer, so it cannot read text; give a folder that holds tokenizer.json."
        )
    caps = {"calibration": inputs.held_out, "test": inputs.held_out}
    if inputs.records is not None:
        caps["train"] = inputs.records
    splits: Splits = load_splits(inputs.data, limit=caps, columns=dict(inputs.columns), seed=inputs.split_seed)
    limit = min(inputs.max_length or 512, loaded.context)
    parts = {}
    for name in ("train", "calibration", "test"):
        records = getattr(splits, name)
        parts[name] = tokenise(records, loaded.tokenizer, max_length=limit)
        if parts[name].report.truncated:
            note(f"{inputs.data}, {name}: {parts[name].report}")
    skipped = splits.train.skipped
    if skipped:
        note(f"{inputs.data}: left out {len(skipped)} bad records, first {skipped[0].origin}: {skipped[0].reason}")
    identity = tuple(
        {"id": inputs.data, "split": name, "sha256": getattr(splits, name).sha256, "records": len(parts[name])}
        for name in ("train", "calibration")
    )
    return Prepared(**parts, identity=identity)


def adapter_in(place: Path) -> Path | None:
    """The adapter folder that a path names: itself, or the one a scoring run stored; None where there is none."""
    for candidate in (place, place / "adapter", place / "stage1" / "adapter"):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    return None
