"""The peak of a stretch of work covers what it held at most, and starts anew when asked."""

import torch

from keylayers.training.memory import peak_bytes, reset_peak


def test_the_peak_rises_with_what_is_held_for_a_while():
    reset_peak()
    before = peak_bytes()
    held = torch.ones(64 * 2**20 // 4)
    del held
    assert peak_bytes() - before >= 50 * 2**20
