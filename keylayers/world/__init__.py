"""The bundled default: a small synthetic world with known truth, its data sets and the model really trained on it."""

from keylayers.world.datasets import load, names

__all__ = ["load", "names"]
