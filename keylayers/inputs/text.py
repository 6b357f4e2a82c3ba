"""From what a user names (a model, data, a tuned version) to what criteria and actions take."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from keylayers.data import Examples, Records, Splits, load_splits, tokenise
from keylayers.data.fitting import fitted
from keylayers.data.formats import BAD_SHARE
from keylayers.data.splits import pooled
from keylayers.data.tokenisation import closing
from keylayers.errors import BadInput, KeylayersError
from keylayers.measures.causality import require_causal
from keylayers.models.families import family_of, vocabulary_of
from keylayers.models.loading import LoadedModel, load_model, load_outline
from keylayers.models.sources import is_factory
from keylayers.runs import note, read_run
from keylayers.settings import Count, Seed, Settings, Share

DEFAULT_LENGTH = 512
"""Tokens a record is cut at where the model could take more and nothing is said."""


@dataclass(frozen=True)
class Inputs(Settings):
    """A model and data as the user named them."""

    model: str
    data: str | None = None
    """None where nothing looks at any."""
    weights: str | None = None
    """Safetensors for a model given as package.module:factory."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> the data's own column name."""
    max_length: Annotated[int, Ge(2)] | None = None
    """Tokens a record is cut at; None: the model's context, at most 512."""
    records: Count | None = None
    """Most training records; None: all."""
    held_out: Count = 256
    """Most calibration and most test records."""
    split_seed: Seed = 0
    template: str = "auto"
    """How conversations become text: auto, chat, plain, or a text with {prompt} and {completion}."""
    bad_share: Share = BAD_SHARE
    """Most of the records that may be bad and left out."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
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

    @property
    def trust(self) -> dict[str, bool]:
        """What the files of models may do, as what loads them takes it."""
        return {"allow_pickle": self.allow_pickle, "trust_remote_code": self.trust_remote_code}

    def outline(self) -> LoadedModel | None:
        """The model without its weights, with its tokenizer; None where only loading tells what it is.

        What does not fit it (data, settings, a policy) is then refused before minutes of downloading and loading.
        """
        if is_factory(self.model):
            return None
        try:
            return load_outline(self.model, trust_remote_code=self.trust_remote_code)
        except KeylayersError:
            return None  # loading says what is wrong, or does without

    def load_splits(self, calibration: int | None = None) -> Splits:
        """The three disjoint parts of the data, as records; needs no model, so bad data is known before one loads.

        `calibration` is the most of its records, where not `held_out`.

        Raises:
            BadInput: if no data is named, or as `keylayers.data.load_splits` does.
        """
        if self.data is None:
            raise BadInput("no data is named", "name some as `data`")
        caps = {"calibration": calibration or self.held_out, "test": self.held_out}
        if self.records is not None:
            caps["train"] = self.records
        return load_splits(
            self.data, limit=caps, columns=dict(self.columns), seed=self.split_seed, bad_share=self.bad_share
        )

    def load_pool(self, most: int) -> Splits:
        """The data where nothing is trained on any: as many records as there are, up to `most`, as calibration part.

        Raises:
            BadInput: if no data is named, or as `keylayers.data.load_records` does.
        """
        if self.data is None:
            raise BadInput("no data is named", "name some as `data`")
        return pooled(self.data, most=most, seed=self.split_seed, columns=dict(self.columns), bad_share=self.bad_share)


@dataclass(frozen=True)
class Prepared:
    """The three disjoint parts of a data set as token sequences for one model."""

    train: Examples
    calibration: Examples
    test: Examples
    identity: tuple[dict[str, Any], ...]
    """What a score file says about the data."""
    records: Records | None = None
    """The calibration part as it was, for measures that generate."""


def prepare_data(inputs: Inputs, loaded: LoadedModel, splits: Splits | None = None) -> Prepared:
    """The data as the model's tokens; says on standard error what was left out and what the length limit cost.

    Raises:
        BadInput: as the data package does, or if the model has no tokenizer.
    """
    if loaded.tokenizer is None:
        if loaded.no_tokenizer:
            raise BadInput(loaded.no_tokenizer)
        raise BadInput(
            f"{inputs.model} has no tokenizer, so it cannot read text",
            "give a folder that holds tokenizer.json",
            "give images to a network of images (`data=IMAGES.npz`)",
        )
    splits = splits or inputs.load_splits()
    _note_left_out(str(inputs.data), splits.train)
    family = family_of(loaded.model)
    if family == "encoder-decoder":
        _require_prompts(inputs, loaded, splits)
    asked = DEFAULT_LENGTH if inputs.max_length is None else inputs.max_length
    limit = min(asked, loaded.context)
    if family in ("encoder-decoder", "masked"):  # their texts end with a mark of their own
        limit = min(asked, loaded.context - len(closing(loaded.tokenizer)))
    if inputs.max_length is not None and limit < asked:
        note(f"{inputs.model} sees at most {limit} tokens; records are cut there, not at {asked}")
    parts: dict[str, Examples] = {}
    for name in ("calibration", "train", "test"):
        records = getattr(splits, name)
        if not len(records):  # of a pool
            parts[name] = replace(parts["calibration"], input_ids=(), labels=(), origins=())
            continue
        parts[name] = tokenise(
            records,
            loaded.tokenizer,
            max_length=limit,
            template=inputs.template,
            bad_share=inputs.bad_share,
        )
        if parts[name].report.truncated:
            note(f"{inputs.data}, {name}: {parts[name].report}")
        if refused := parts[name].report.refused:
            note(f"{inputs.data}, {name}: left out {len(refused)} conversations, first {refused[0].reason}")
        parts[name] = fitted(parts[name], family, loaded.tokenizer)
    _require_known_tokens(inputs, loaded, parts["calibration"])
    identity = tuple(
        {"id": inputs.data, "split": records.split or name, "sha256": records.sha256, "records": len(parts[name])}
        for name, records in (("train", splits.train), ("calibration", splits.calibration))
        if len(parts[name])
    )
    return Prepared(**parts, identity=identity, records=splits.calibration)


def require_unseen(loaded: LoadedModel, data: Prepared) -> None:
    """Raises BadInput if the network, once it is loaded, sees tokens that come after those it predicts."""
    if family_of(loaded.model) == "causal":
        require_causal(loaded.model, data.calibration.input_ids)


def _require_prompts(inputs: Inputs, loaded: LoadedModel, splits: Splits) -> None:
    bare = next((record for part in (splits.train, splits.calibration) for record in part if record.text), None)
    if bare is not None:
        raise BadInput(
            f"{bare.origin} is a text without a prompt, and {inputs.model} ({type(loaded.model).__name__}) reads a "
            "prompt in its encoder and writes an answer",
            "give prompts with completions, or a causal language model",
        )


def _require_known_tokens(inputs: Inputs, loaded: LoadedModel, examples: Examples) -> None:
    rows = vocabulary_of(loaded.model)
    largest = max(max(ids) for ids in (*examples.input_ids, *examples.labels))
    if rows is not None and largest >= rows:
        raise BadInput(
            f"the tokenizer of {inputs.model} has token {largest} ({loaded.tokenizer.decode([largest])!r}), but the "
            f"model knows {rows:,} tokens only",
            "give the tokenizer it was trained with, or enlarge its embeddings (resize_token_embeddings)",
        )


def _note_left_out(source: str, records: Records) -> None:
    if skipped := records.skipped:
        note(f"{source}: left out {len(skipped)} bad records, first {skipped[0].origin}: {skipped[0].reason}")
    if records.unwanted:
        note(f"{source}: left out {records.unwanted} records whose answer is marked as a bad one (label: false)")


def trained_here(tuned: str | None, inputs: Inputs) -> bool:
    """Whether a tuned model is of a run of ours on the same data, whose training records are then known."""
    if tuned is None or inputs.data is None:
        return False
    place = Path(tuned).resolve()
    run = next((folder for folder in (place, *list(place.parents)[:4]) if (folder / "run.json").is_file()), None)
    if run is None:
        return False
    stored = read_run(run).get("settings", {}).get("inputs", {})
    data = str(stored.get("data"))
    return data == inputs.data or Path(data).resolve() == Path(inputs.data).resolve()


def tuned_place(given: str) -> str:
    """What a tuned model's name stands for: the finished adapter or model of a run folder, else the name itself.

    Raises:
        BadInput: for a run folder that holds none.
    """
    place = Path(given)
    if not (place / "run.json").is_file():
        return given
    if (place / "tuned").is_dir():
        return str(place / "tuned")
    if (place / "parts" / "stage1.json").is_file():  # written once the adapter is whole
        return str(place / "stage1" / "adapter")
    raise BadInput(
        f"{given} is a run folder without a finished tuned model; run its command again to finish it, or give the "
        "tuned checkpoint or adapter itself."
    )
