"""The CIFAR ResNets of He et al. 2015 (section 4.2) with parameter-free shortcuts, normalisation inside the network."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.models.pixels import checked_pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per-channel statistics the published CIFAR-10 weights were trained with (ImageNet's)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that subsamples and zero-pads channels (option A)."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_out)
        self.stride, self.pad = stride, (d_out - d_in) // 2

    def forward(self, x: Float[Tensor, "batch d_in height width"]) -> Float[Tensor, "batch d_out *size"]:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        skip = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(out + nn.functional.pad(skip, (0, 0, 0, 0, self.pad, self.pad)))


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages; takes images in [0, 1] and normalises them itself."""

    mean: Tensor
    std: Tensor
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, blocks: int, widths: tuple[int, int, int] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for index, width in enumerate(widths, start=1):
            strides = [1 if index == 1 else 2] + [1] * (blocks - 1)
            inputs = [before] + [width] * (blocks - 1)
            stage = [BasicBlock(d_in, width, stride) for d_in, stride in zip(inputs, strides, strict=True)]
            setattr(self, f"layer{index}", nn.Sequential(*stage))
            before = width
        self.linear = nn.Linear(before, classes)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """An input of the right shape, under the name that Hugging Face models give theirs."""
        return {"x": torch.zeros(1, 3, 32, 32)}

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits. Raises BadInput for images outside [0, 1] or of other than 3 channels."""
        x = torch.relu(self.bn1(self.conv1((checked_pixels(x, 3) - self.mean) / self.std)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> CifarResNet:
    """0.27 M parameters."""
    return CifarResNet(3)


def resnet32() -> CifarResNet:
    """0.46 M parameters."""
    return CifarResNet(5)


def resnet56() -> CifarResNet:
    """0.85 M parameters."""
    return CifarResNet(9)
