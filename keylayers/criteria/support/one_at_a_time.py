"""Losses with one layer's gate flipped and all others at one end; blocks below the flipped layer are computed once."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from keylayers.criteria.protocol import Evidence
from keylayers.layers.gating import frozen, gated
from keylayers.layers.layer import Layer
from keylayers.layers.prefix import block_outputs, resumed
from keylayers.measures.objective import finite


def losses_one_at_a_time(
    evidence: Evidence, layers: Sequence[Layer], others: float, together: Sequence[Sequence[int]] | None = None
) -> tuple[Float[np.ndarray, " batches"], Float[np.ndarray, "batches layers"], list[int]]:
    """Summed loss of each batch with all gates (and the remainder) at `others`; the same with each layer's at the other
    end; tokens of each batch. `together` gives, instead of each layer, places of layers whose gates go there at once.
    Memory: the outputs of all blocks for one batch.

    Raises:
        Diverged: if a loss is not finite; names batch and layer.
    """
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    model, deltas = evidence.model, evidence.deltas.held()
    sets = [(place,) for place in range(len(layers))] if together is None else [tuple(one) for one in together]
    gates = deltas.uniform(others)
    whole, flipped = np.zeros(len(evidence.data)), np.zeros((len(evidence.data), len(sets)))
    terms = [0] * len(evidence.data)
    with frozen(model), torch.no_grad(), gated(model, deltas, lambda: gates, others):
        for row, batch in enumerate(evidence.data):
            with block_outputs(model) as outputs:
                value, terms[row] = evidence.loss(model, batch)
            whole[row] = finite(float(value), f"the loss of batch {row} with all gates at {others:g}")
            for column, places in enumerate(sets):
                changing = [place for place in places if deltas.changes[place]]
                if not changing:
                    flipped[row, column] = whole[row]
                    continue
                gates[changing] = 1.0 - others
                with resumed(model, outputs, min(outputs.start(layers[place]) for place in changing)):
                    value, _ = evidence.loss(model, batch)
                names = ", ".join(layers[place].name for place in changing)
                what = f"the loss of batch {row} with only the gate of {names} at {1 - others:g}"
                flipped[row, column] = finite(float(value), what)
                gates[changing] = others
                if evidence.progress:
                    evidence.progress(row * len(sets) + column + 1, len(evidence.data) * len(sets), 0.0)
    return whole, flipped, terms
