"""How much more certain a block makes the next token: the drop of the logit lens' entropy across it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.hidden_states import HiddenStates, Position
from keylayers.criteria.support.observers import Blocks, Means, Observed, observing
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.readout import Readout, readout_of
from keylayers.measures.objective import logits_of, model_device, on_device

_LOGIT_ELEMENTS = 2**26  # logits held at once, 256 MiB in fp32


@dataclass(frozen=True)
class LogitLensEntropy(CriterionSettings):
    """Settings of `logit_lens_entropy`."""

    position: Position = "all"
    """Positions read: all tokens, or the last of the prompt or of the sequence, which costs far fewer heads."""


def _work(layers: Sequence[Layer], settings: LogitLensEntropy, batches: int) -> Work:
    return Work(batches + 1, 0)  # one record more, to find what comes after the blocks; the heads are not counted


@observing(settings=LogitLensEntropy, work=_work)
def score_logit_lens_entropy(evidence: Evidence, blocks: Blocks, settings: LogitLensEntropy) -> "Lens":
    """Entropy of the logit lens before a block minus after it, in nats; negative where the block makes it less certain.

    The lens is the model's own final norm, head, scale and soft cap applied to the hidden states of any block
    (nostalgebraist 2020); they are found by running one record, and must give its logits exactly. High = the block
    settles what comes next = critical. All scores sum to the entropy at the embeddings minus the model's own.
    Cost: one head per block boundary and position beside the pass; memory: 256 MiB of logits.

    Raises:
        BadInput: for a model without logits at every position of one stack, or position=mean.
    """
    if settings.position == "mean":
        raise BadInput(
            "logit_lens_entropy reads tokens, and a mean over them is none",
            "give `settings.position=all`, prompt or last",
        )
    if len(set(blocks.stacks)) > 1:
        raise BadInput("logit_lens_entropy needs one stack of blocks; an encoder's hidden states are read by no head.")
    return Lens(blocks, settings, _readout(evidence))


def _readout(evidence: Evidence) -> Readout:
    """What the model does after its blocks, from one record."""
    assert evidence.model is not None and evidence.data is not None
    model, first = evidence.model, evidence.data[0]
    record = {key: value[:1] if isinstance(value, Tensor) else value for key, value in first.items() if key != "labels"}
    moved: Mapping[str, Any] = on_device(record, model_device(model))
    options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    return readout_of(model, lambda: logits_of(model(**moved, **options)))


class Lens:
    """Sums of entropies at every boundary between blocks."""

    def __init__(self, blocks: Blocks, settings: LogitLensEntropy, readout: Readout) -> None:
        self.blocks, self.settings, self.readout, self.means = blocks, settings, readout, Means()
        self.entering, self.step = Means(), 1  # rows at a time, until a row shows how wide the vocabulary is

    def observe(self, seen: HiddenStates) -> None:
        sums, starts, counts = [], [], []
        before: tuple[Tensor, float] | None = None
        for index in range(len(self.blocks.layers)):
            entering, leaving = (seen.rows(index, side, self.settings.position) for side in ("before", "after"))
            start = before[1] if before is not None and before[0] is entering else self._sum(entering, seen, index)
            end = self._sum(leaving, seen, index)
            sums.append(start - end)
            starts.append(start)
            counts.append(len(leaving))
            before = (leaving, end)
        self.means.add(sums, counts)
        self.entering.add(starts, counts)

    def _sum(self, rows: Float[Tensor, "rows d_model"], seen: HiddenStates, index: int) -> float:
        """Summed entropy of the lens over rows."""
        total, done, dtype = 0.0, 0, seen.hidden(index, "after").dtype
        while done < len(rows):
            logits = self.readout(rows[done : done + self.step].to(dtype))
            total += float(entropies(logits).sum(dtype=torch.float64))
            done += self.step
            self.step = max(1, _LOGIT_ELEMENTS // logits.shape[-1])
        return total

    def finish(self) -> Observed:
        values, repeats = self.means.finish()
        return Observed(values, repeats, notes={"entropies": self.entering.finish()[0].tolist()})


def entropies(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Entropy of the softmax of each row, in nats, in [0, log vocab]; in float32, or float64 for float64 logits."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logs = precise.log_softmax(-1)
    return -(logs.exp() * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1)
