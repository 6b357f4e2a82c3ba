"""What 4-bit storage does to weights, without storing them so: through NF4 and back, until the block ends."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of

BLOCK = 64
"""Weights that share a scale, as QLoRA has it."""


@contextmanager
def through_nf4(model: nn.Module, layers: Sequence[Layer]) -> Iterator[nn.Module]:
    """The model with the layers' matrices rounded to NF4 with double quantisation; the exact weights come back.

    LoRA trained on it computes what QLoRA (Dettmers et al. 2023) computes in this precision; its memory is not saved.
    bitsandbytes' own 4-bit layers cannot run here at widths that are no multiple of 32 on a CPU.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    own = parameters_of(model)
    names = [name for layer in layers for name in layer.parameters if own[name].ndim == 2]
    kept = {name: own[name].detach().clone() for name in names}
    try:
        with torch.no_grad():
            for name in names:
                flat = (
                    own[name].detach().flatten()
                )  # as a matrix narrower than a block it comes back wrong (0.50.2, CPU)
                packed, state = quantize_4bit(flat, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
                own[name].copy_(dequantize_4bit(packed, state).view_as(own[name]))
        yield model
    finally:
        with torch.no_grad():
            for name, exact in kept.items():
                own[name].copy_(exact)
