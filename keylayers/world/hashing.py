"""Seeded choices that depend on an item alone, never on the order in which items are made."""

import hashlib
import random

SEED = 20240607
"""The world's seed: another value is another world, for which the bundled model is not trained."""

SPLITS = ("train", "calibration", "test")


def unit(*key: object) -> float:
    """A number in [0, 1) that is a fixed function of the world's seed and the key."""
    digest = hashlib.sha256("|".join(map(str, (SEED, *key))).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def generator(*key: object) -> random.Random:
    """A random generator that is a fixed function of the world's seed and the key."""
    return random.Random("|".join(map(str, (SEED, *key))))


def split_of(*item: object) -> str:
    """The one split an item belongs to: 70 % train, 15 % calibration, 15 % test."""
    position = unit("split", *item)
    return "train" if position < 0.70 else "calibration" if position < 0.85 else "test"
