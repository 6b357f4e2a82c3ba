"""Losses with one layer's gate flipped and all others at one end; blocks below the flipped layer are computed once."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from keylayers.criteria.criterion import Evidence
from keylayers.layers.gating import frozen, gated
from keylayers.layers.layer import Layer
from keylayers.layers.prefix import block_outputs, resumed
from keylayers.measures.objective import finite


def losses_one_at_a_time(
    evidence: Evidence, layers: Sequence[Layer], others: float
) -> tuple[Float[np.ndarray, " batches"], Float[np.ndarray, "batches layers"], list[int]]:
    """Summed loss of each batch with all gates (and the remainder) at `others`; the same with each layer's at the other
    end; tokens of each batch. Memory: the outputs of all blocks for one batch.

    Raises:
        Diverged: if a loss is not finite; names batch and layer.
    """
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    model, deltas = evidence.model, evidence.deltas.held()
    gates = deltas.uniform(others)
    whole, flipped = np.zeros(len(evidence.data)), np.zeros((len(evidence.data), len(layers)))
    terms = [0] * len(evidence.data)
    with frozen(model), torch.no_grad(), gated(model, deltas, lambda: gates, others):
        for row, batch in enumerate(evidence.data):
            with block_outputs(model) as outputs:
                value, terms[row] = evidence.loss(model, batch)
            whole[row] = finite(float(value), f"the loss of batch {row} with all gates at {others:g}")
            for column, layer in enumerate(layers):
                if not deltas.changes[column]:
                    flipped[row, column] = whole[row]
                    continue
                gates[column] = 1.0 - others
                with resumed(model, outputs, outputs.start(layer)):
                    value, _ = evidence.loss(model, batch)
                what = f"the loss of batch {row} with only the gate of {layer.name} at {1 - others:g}"
                flipped[row, column] = finite(float(value), what)
                gates[column] = others
                if evidence.progress:
                    evidence.progress(row * len(layers) + column + 1, len(evidence.data) * len(layers), 0.0)
    return whole, flipped, terms
