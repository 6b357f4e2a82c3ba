"""Random examples for the tiny models, and digests of what a model holds."""

import torch
from torch import nn

from keylayers.data.tokenisation import Examples, TruncationReport
from keylayers.layers import named_layers
from keylayers.scores import Selection


def examples(count: int = 12, length: int = 8, seed: int = 0, vocabulary: int = 96) -> Examples:
    """Token sequences whose first two tokens are a prompt; the completion repeats one token, so it can be learnt."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, vocabulary, (count, 2), generator=generator).tolist()
    ids = tuple((*prompt, *[prompt[0]] * (length - 2)) for prompt in prompts)
    labels = tuple((-100, -100, *row[2:]) for row in ids)
    return Examples(ids, labels, ("",) * count, 0, TruncationReport(64, count, 0, 0, 0))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything the model stores."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two copies are bit for bit the same."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def block(model: nn.Module, *indices: int) -> Selection:
    """All linear layers of these blocks."""
    return Selection.of(named_layers(model), blocks=indices)


def picked(model: nn.Module, *names: str) -> Selection:
    """These layers by name."""
    return Selection.of(named_layers(model), names=names)
