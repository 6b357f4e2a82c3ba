"""A small residual network for 8x8 grey images (scikit-learn's digits), trained in seconds on one core."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.models.pixels import checked_pixels

MEAN, STD = 0.305, 0.376
"""Of all pixels of the digits, in [0, 1]."""


class DigitsBlock(nn.Module):
    """Two 3x3 convolutions and a skip: the identity, written `x + f(x)`, or a projection where the shape changes."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_out)
        self.shortcut: nn.Module | None = None
        if stride > 1 or d_in != d_out:
            self.shortcut = nn.Sequential(nn.Conv2d(d_in, d_out, 1, stride, bias=False), nn.BatchNorm2d(d_out))

    def forward(self, x: Float[Tensor, "batch d_in height width"]) -> Float[Tensor, "batch d_out *size"]:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class DigitsResNet(nn.Module):
    """A stem and three stages of residual blocks; takes images in [0, 1] and normalises them itself."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, blocks: int = 2, widths: tuple[int, int, int] = (12, 24, 48), classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for index, width in enumerate(widths, start=1):
            inputs = [before] + [width] * (blocks - 1)
            strides = [1 if index == 1 else 2] + [1] * (blocks - 1)
            stage = [DigitsBlock(d_in, width, stride) for d_in, stride in zip(inputs, strides, strict=True)]
            setattr(self, f"layer{index}", nn.Sequential(*stage))
            before = width
        self.linear = nn.Linear(before, classes)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """An input of the right shape, under the name that Hugging Face models give theirs."""
        return {"x": torch.zeros(1, 1, 8, 8)}

    def forward(self, x: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits. Raises BadInput for images outside [0, 1] or of other than 1 channel."""
        x = torch.relu(self.bn1(self.conv1((checked_pixels(x, 1) - MEAN) / STD)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def digits_resnet() -> DigitsResNet:
    """Six blocks, 0.10 M parameters."""
    return DigitsResNet()
