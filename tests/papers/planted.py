"""A desk whose answers follow from what every layer is worth, so that a study must find just that."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from keylayers.layers.naming import named_layers
from keylayers.models.loading import load_shape
from keylayers.runs import digest
from keylayers.scores import LayerScores
from keylayers.scores.files import save
from keylayers.studies.desk import Desk


def worth(layer) -> float:
    """What training a layer brings, in nats: more at the top, and MLPs more than attention."""
    return (2.0 if layer.kind.startswith("mlp") else 1.0) * (1 + (layer.block if layer.block is not None else 3)) / 100


@dataclass(frozen=True)
class PlantedDesk(Desk):
    """Answers without computing: `path_integral` ranks by worth, everything else by chance."""

    asked: list = field(default_factory=list)
    unable: tuple = ()
    """Criteria that cannot score."""
    by_block: bool = False
    """Whether all layers of a block score the same."""
    harm: float = 0.0
    """Nats that every training adds."""

    def ask(self, task, what, asked):
        self.asked.extend((task, what, each) for each in asked)
        return [getattr(self, what)(task, self.layers(task), **each) for each in asked]

    def layers(self, task):
        return _layers(task.inputs.model)

    def names(self, task, layers):
        return {"names": [layer.name for layer in layers]}

    def before(self, task, layers, answers=False):
        return {"test": 10.0, "calibration": 10.0, "exact": 0.0}

    def keep(self, task, candidates, adapter, layers):
        return {"test": 10 - sum(worth(one) for one in candidates if one.name in set(layers))}

    def stage_one(self, task, layers, seed, lr, share, short=False):
        return {"adapter": f"{task.name}-{seed}-{share}{'-short' * short}", "seconds": 20 * share}

    def score(self, task, layers, criterion, settings, adapter, records, granularity=None, optional=False):
        if criterion in self.unable:
            assert optional
            return {"cannot": f"{criterion} needs more blocks"}
        key = digest([task.fields(), criterion, settings, adapter, records])[:12]
        noise = np.random.default_rng(int(key, 16)).normal(size=len(layers))
        values = np.array([worth(one) for one in layers]) + 1e-3 * noise if criterion == "path_integral" else noise
        if self.by_block:
            values = np.array([-1.0 if layer.block is None else float(layer.block) for layer in layers])
        name = f"{key}.json"
        save(LayerScores(tuple(layers), values, criterion, "linear"), self.run.path / name)
        return {"file": name, "seconds": 1.0}

    def retrain(self, task, candidates, *, layers, seed, lr, nf4=False, answers=False, rank=None, turns=None):
        """3e-2 is the wrong rate, 4 bits cost a little, and so does every seed."""
        chosen = set(layers)
        loss = 10 - sum(worth(one) for one in candidates if one.name in chosen) + 0.01 * seed
        loss += self.harm + (lr > 0.02) + 0.1 * nf4 + 20 * (rank is not None) + 30 * (turns is not None)
        return {"test": loss, "calibration": loss, "seconds": 20.0, "trainable": 1, "exact": 1 - loss / 10}


@cache
def _layers(model):
    return named_layers(load_shape(model), "linear")
