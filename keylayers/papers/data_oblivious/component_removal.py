"""Top components taken out of one block's output while a model answers: what becomes of the answers?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.criteria.support.hidden_states import HiddenStates
from keylayers.data.batches import batches
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.intervene import replaced
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.measures.accuracy import exact_match
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import language_loss
from keylayers.studies.text_task import LoadedTask

Way = Literal["stored", "projected", "random"]
"""What is taken away at each written token: the prompt's own part along the components, the same vector every time, as
released; the token's own part; a vector of the prompt part's length in a random direction, as a control."""

DIRECTIONS = 5
"""Random directions of the control: one alone may happen to shorten answers, or not to."""


@dataclass(frozen=True)
class Components:
    """Mean and top principal directions of the hidden states that leave a block, at the last token of prompts."""

    mean: Float[Tensor, " d_model"]
    directions: Float[Tensor, "d_model components"]
    """Orthonormal columns, the strongest first."""
    share: float
    """Of the variance over prompts, in [0, 1]."""


def principal(rows: Float[Tensor, "samples d_model"], components: int) -> Components:
    """The top directions of the rows. Raises BadInput for none, or more than the rows can have."""
    if not 1 <= components < min(rows.shape):
        raise BadInput(f"components={components}: {tuple(rows.shape)} rows have 1 to {min(rows.shape) - 1} to remove.")
    mean = rows.mean(0)
    _, values, vectors = torch.linalg.svd((rows - mean).double(), full_matrices=False)
    share = float(values[:components].square().sum() / values.square().sum())
    return Components(mean, vectors[:components].T.to(rows.dtype), share)


@dataclass
class _Removing:
    """Takes the part away at the last place of every forward pass: the prompt's end, then each written token."""

    found: Components
    way: Way
    direction: Float[Tensor, " d_model"]
    part: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        last = after[:, -1]
        if after.shape[1] > 1 or self.way == "projected":  # several places: a prompt; then its part is kept
            self.part = (last - self.found.mean) @ self.found.directions @ self.found.directions.T
            if self.way == "random":
                self.part = self.part.norm(dim=1, keepdim=True) * self.direction
        changed = after.clone()
        changed[:, -1] = last - self.part
        return changed


@contextmanager
def without_components(model: nn.Module, block: Layer | str, found: Components, way: Way, seed: int) -> Iterator[None]:
    """The model whose block loses those components while it generates, with prompts padded on the left and a cache.

    Raises:
        UnknownName: for another way.
    """
    if way not in get_args(Way):
        raise UnknownName("way of removing", str(way), get_args(Way))
    drawn = torch.randn(len(found.mean), generator=torch.Generator().manual_seed(seed)).to(found.mean)
    change: Callable[[Tensor, Tensor], Tensor] = _Removing(found, way, drawn / drawn.norm())
    with replaced(model, {block if isinstance(block, str) else block.name: change}):
        yield


def removal(
    place: LoadedTask, folder: Path, *, block: int | None, components: int, way: Way, records: int, new_tokens: int
) -> dict[str, Any]:
    """Answers to the first test prompts with the components of one block removed; block None: nothing removed.

    exact: share answered exactly; ending: share whose last word is right; words: of the answer to each prompt; share:
    of the variance that was removed. Shares in [0, 1]. All are means over the directions where these are random.
    """
    # deviates: the released code takes components from the prompts it then answers; here from calibration prompts.
    model, tokenizer = place.loaded.model, place.loaded.tokenizer
    asked = list(place.task.inputs.load_splits().test)[:records]
    share = 0.0
    if block is None:
        tried = [exact_match(model, tokenizer, asked, max_new_tokens=new_tokens)]
    else:
        layers = named_layers(model, "block")
        found = principal(prompt_rows(place, layers[block]), components)
        share, tried = found.share, []
        for draw in range(DIRECTIONS if way == "random" else 1):
            with without_components(model, layers[block], found, way, seed=DIRECTIONS * block + draw):
                tried.append(exact_match(model, tokenizer, asked, max_new_tokens=new_tokens))
    said, right = (
        [[answer.split() for answer in one.answers] for one in tried],
        [one.completion.split() for one in asked],
    )
    return {
        "exact": fmean(one.mean for one in tried),
        "ending": fmean(a[-1:] == b[-1:] for each in said for a, b in zip(each, right, strict=True)),
        "words": [fmean(map(len, answers)) for answers in zip(*said, strict=True)],
        "right_words": [len(one) for one in right],
        "share": share,
        "first": tried[0].answers[0],
    }


def prompt_rows(place: LoadedTask, block: Layer) -> Float[Tensor, "samples d_model"]:
    """What leaves a block at the last token of each calibration prompt."""
    rows = []
    with evaluating(place.loaded.model), torch.no_grad():
        for batch in batches(place.data.calibration, 16, shuffle=False):
            with capture(place.loaded.model, [block], stop=True) as captured:
                language_loss(place.loaded.model, batch)
            rows.append(HiddenStates(place.loaded.model, batch, [block], captured).rows(0, "after", "prompt"))
    return torch.cat(rows)
