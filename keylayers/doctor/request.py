"""What a user asks the doctor, and what it takes to answer: the model, a probe, a workload, the selections compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from keylayers.data.batches import collate
from keylayers.data.tokenisation import IGNORED, Examples
from keylayers.doctor.costs import Workload, workload
from keylayers.doctor.probe import Inputs, ModelUnderTest, input_maker, layers_of
from keylayers.inputs.scores_fit import check_scores_fit
from keylayers.inputs.text import Inputs as Source
from keylayers.inputs.text import prepare_data
from keylayers.layers.layer import Layer
from keylayers.models.loading import LoadedModel
from keylayers.scores import Selection, load_scores, parse, select
from keylayers.scores.seeded_policies import choose
from keylayers.settings import Count, Settings
from keylayers.training.adapters import LoraSettings

PROBE = (2, 32)
"""Sequences and tokens of the gates' input."""


@dataclass(frozen=True)
class DoctorRequest(Settings):
    """Which model, and for what work the costs are forecast."""

    source: Source
    with_data: bool = False
    """Whether the source's data makes the inputs; else they are random tokens or images."""
    scores: Path | None = None
    select: str | None = None
    """Policy; None: top:30% of the scores, or 30 % at random without any."""
    seq: Annotated[int, Ge(4)] = 128
    batch: Count = 4
    records: Count = 256
    """Calibration records."""
    rank: Count = 8
    sample: Count = 12
    """Layers, and blocks, that the costly gates look at."""

    @property
    def policies(self) -> tuple[str, ...]:
        """The selection asked about; beside it the last layers (the shortest backward pass), and all (stage 1)."""
        chosen = self.select or ("top:30%" if self.scores is not None else "random:30%:seed=0")
        return tuple(dict.fromkeys((chosen, "last:30%", "all")))


@dataclass(frozen=True)
class Prepared:
    """All that the gates and forecasts look at."""

    patient: ModelUnderTest
    layers: tuple[Layer, ...]
    """Those of the scores, or of the finest granularity of the network."""
    selections: tuple[Selection, ...]
    work: Workload | None
    """None where no input could be made."""
    probe: str
    """What the inputs are, in words."""


def admit(request: DoctorRequest, loaded: LoadedModel) -> Prepared:
    """Everything ready for a loaded model.

    Raises:
        BadScores, BadSelection, BadInput: if scores are of another model, or a policy or the data does not fit.
    """
    scores = None if request.scores is None else load_scores(request.scores)
    if scores is not None:
        check_scores_fit(scores, loaded.model, loaded.source)
    layers = scores.layers if scores is not None else finest_layers(loaded)
    policies = request.policies if len(layers) > 1 else ("all",) * len(layers)  # of one layer, no share can be chosen
    selections = tuple(choose(scores, layers, policy, seed=0) for policy in policies)
    maker, records, words = _inputs(request, loaded)
    if maker is None:
        return Prepared(ModelUnderTest(loaded, None, None, request.sample), layers, selections, None, words)
    patient = ModelUnderTest(loaded, maker(*PROBE, 0), maker(*PROBE, 1), request.sample)
    lora = LoraSettings(rank=request.rank)
    work = workload(maker, request.batch, min(request.seq, loaded.context), records, lora)
    return Prepared(patient, layers, selections, work, words)


def check_files(request: DoctorRequest) -> None:
    """Raises, before the model is loaded, for scores, a policy or data that cannot be read."""
    scores = None if request.scores is None else load_scores(request.scores)
    for policy in request.policies:
        if scores is not None:
            select(scores, policy, allow_total=True)
        else:
            parse(policy)
    if request.with_data:
        request.source.load_pool(request.records)


def finest_layers(loaded: LoadedModel) -> tuple[Layer, ...]:
    """The network's linear layers, or its convolutions where there are more of those."""
    return max((layers_of(loaded.model, name) for name in ("linear", "conv")), key=len)


def _inputs(request: DoctorRequest, loaded: LoadedModel) -> tuple[Callable[..., Inputs] | None, int, str]:
    """What makes inputs, how many calibration records there are, and words for both."""
    maker = input_maker(loaded)
    if not request.with_data or maker is None:
        sample: Any = maker(1, 4, 0) if maker is not None else {}
        kind = "random tokens" if "input_ids" in sample else "random images"
        return maker, request.records, kind if maker is not None else "no input could be made"
    examples = prepare_data(request.source, loaded, request.source.load_pool(request.records)).calibration
    both = "decoder_input_ids" in maker(1, 4, 0)
    return _from(examples, both), len(examples), f"{len(examples)} calibration records of {request.source.data}"


def _from(examples: Examples, decoder_too: bool) -> Callable[[int, int, int], Inputs]:
    def make(batch: int, seq: int, seed: int) -> Inputs:
        places = [(seed * batch + index) % len(examples) for index in range(batch)]
        made: Inputs = {key: value[:, :seq] for key, value in collate(examples.take(places)).items()}
        written = made.pop("labels")
        return made | (
            {"decoder_input_ids": written.masked_fill(written == IGNORED, examples.pad_id)} if decoder_too else {}
        )

    return make
