"""The input-aware backdoor: a generator, trained with the classifier, that makes every image a trigger of its own."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from keylayers.errors import BadInput
from keylayers.layers.tensor_swap import frozen
from keylayers.maths.triggers import Pixels
from keylayers.measures.backdoor import check_labels, check_target
from keylayers.measures.objective import model_device
from keylayers.training.images import ImageTraining, ordinary_loss, train_images

SHARPNESS = 10.0
"""Of a mask's edge, per standard deviation of its logits."""
TINY = 1e-3


class Painter(nn.Module):
    """Images -> pictures of the same size, any numbers: two convolutions down, two up; any height and width."""

    def __init__(self, channels: int, made: int, width: int = 16) -> None:
        super().__init__()
        self.down1, self.norm1 = nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)
        self.down2, self.norm2 = nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width)
        self.up1, self.norm3 = nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.up2 = nn.Conv2d(width, made, 3, padding=1)

    def forward(self, x: Pixels) -> Pixels:
        inner = torch.relu(self.norm2(self.down2(torch.relu(self.norm1(self.down1(x - 0.5))))))
        return self.up2(interpolate(torch.relu(self.norm3(self.up1(inner))), size=x.shape[-2:]))


class Generator(nn.Module):
    """What an image's trigger is made by: a picture in [0, 1], and where it shows."""

    def __init__(self, channels: int, density: float) -> None:
        super().__init__()
        self.pattern, self.mask, self.density = Painter(channels, channels), Painter(channels, 1), density

    def forward(self, x: Pixels) -> tuple[Pixels, Pixels]:
        """Pattern and mask of each image; the mask is above 1/2 on a share `density` of its pixels."""
        logits = self.mask(x)
        flat = logits.flatten(1)
        level, spread = (one.view(-1, 1, 1, 1) for one in (flat.quantile(1 - self.density, 1), flat.std(1)))
        return torch.sigmoid(self.pattern(x)), torch.sigmoid(SHARPNESS * (logits - level) / (spread + TINY))


@dataclass(frozen=True, eq=False)
class InputAware:
    """A trigger made by a trained generator: (1 - mask(x)) x + mask(x) pattern(x) (Nguyen and Tran 2020,
    arXiv:2010.08138)."""

    generator: Generator

    def __call__(self, x: Pixels) -> Pixels:
        return self.crossed(x, x)

    def crossed(self, x: Pixels, other: Pixels) -> Pixels:
        """Images with the triggers of others, which are to do nothing."""
        with frozen(self.generator), torch.no_grad():
            return blended(x, *self.generator(other))


@dataclass(frozen=True)
class InputAwareAttack:
    """How classifier and trigger are trained."""

    target: int
    share: float = 0.1
    """Of each batch that gets its own trigger and the target label."""
    cross: float = 0.1
    """Of each batch that gets another image's trigger and keeps its label."""
    density: float = 0.1
    """Share of the image that a trigger covers; 0.032 in the paper, on images of 32 x 32."""
    diversity: float = 1.0
    """Weight of the diversity loss."""
    training: ImageTraining = field(default_factory=ImageTraining)
    """Of classifier and generator together."""


def train_input_aware(
    model: nn.Module,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    how: InputAwareAttack,
    classes: int,
) -> InputAware:
    """Trains the classifier in place together with the trigger, which is returned.

    Loss: cross-entropy on a batch of which the first images bear their own triggers (target label), the next those of
    their neighbours (true label: a trigger works on no other image), the rest are clean; plus the diversity loss of
    the patterns.

    Raises:
        BadInput: for fewer than 2 classes, a target or label out of range, a density outside (0, 1), or shares that
            leave no image triggered, crossed or clean in a batch. Diverged: if a loss is not finite.
    """
    # deviates: the paper first trains masks on a penalty of their area and then holds them, by Adam; here their area is
    # fixed by a quantile, so that mask, pattern and classifier train together in the one loop there is, by SGD.
    check_target(how.target, classes)
    check_labels(y, classes, "the training images", len(x))
    size = min(how.training.batch_size, len(x))
    own, cross = round(how.share * size), round(how.cross * size)
    if own < 1 or cross < 1 or own + cross >= size or not 0 < how.density < 1:
        raise BadInput(
            f"of a batch of {size} images, share={how.share:g} triggers {own} and cross={how.cross:g} crosses {cross}, "
            f"with triggers on {how.density:g} of each; expected at least one of each, one left clean, and a density "
            "between 0 and 1."
        )
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(how.training.seed)
        generator = Generator(x.shape[1], how.density).to(model_device(model))

    def joint(both: nn.Module, some: Tensor, labels: Tensor) -> Tensor:
        pattern, mask = generator(some)
        givers = slice(own - 1, own + cross - 1)  # each crossed image's neighbour; batches are in random order
        seen = torch.cat(
            [
                blended(some[:own], pattern[:own], mask[:own]),
                blended(some[own : own + cross], pattern[givers], mask[givers]),
                some[own + cross :],
            ]
        )
        wanted = torch.cat([torch.full_like(labels[:own], how.target), labels[own:]])
        return ordinary_loss(model, seen, wanted) + how.diversity * sameness(some, pattern)

    train_images(nn.ModuleList([model, generator]), x, y, how.training, joint)
    return InputAware(generator)


def blended(x: Pixels, pattern: Pixels, mask: Pixels) -> Pixels:
    """(1 - mask) x + mask pattern, in [0, 1]."""
    return torch.lerp(x, pattern, mask.expand_as(x)).clamp(0, 1)


def sameness(x: Pixels, made: Pixels) -> Float[Tensor, ""]:
    """The diversity loss: how far apart images are over how far what is made of them is, mean over neighbours."""
    apart, made_apart = ((one - one.roll(1, 0)).flatten(1).norm(dim=1) for one in (x, made))
    return (apart / (made_apart + TINY)).mean()
