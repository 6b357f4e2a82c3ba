"""What criteria look at in a network of images: the network, a part of the images, and where both came from."""

import hashlib

from keylayers.criteria.protocol import Evidence
from keylayers.data.images import Images
from keylayers.errors import BadInput
from keylayers.inputs.images import ImageInputs, example_of
from keylayers.inputs.networks import load_network, look_at
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import tensors_in_memory
from keylayers.measures.objective import image_loss
from keylayers.models.pixels import image_argument
from keylayers.recipes.score_request import ScoreRequest
from keylayers.runs import RunFolder, note, versions
from keylayers.scores import Provenance

HELD_OUT = 0.2
"""Of the images, on which nothing is scored: with the same seed those that `harden` measures on."""
LEARNT = {"deltas": "what tuning changed (`tuned`)", "sibling": "a second model (`sibling`)"}
"""Parts of the evidence that are not had from images."""


def gather_evidence(request: ScoreRequest, run: RunFolder, needs: frozenset[str]) -> tuple[Evidence, tuple[Layer, ...]]:
    """The evidence of a request whose data are images, and the layers in the order they run.

    Raises:
        BadInput: as loading does, or where a criterion needs what images cannot give.
    """
    given = request.inputs
    assert given.data is not None
    if missing := [words for part, words in LEARNT.items() if part in needs]:
        raise BadInput(
            f"{given.data} holds images, and {', '.join(request.criteria)} needs {' and '.join(missing)}, learnt from "
            "texts alone here; take criteria that need a model and data (keylayers criteria)."
        )
    note(f"reading {given.data}")
    inputs = ImageInputs(given.model, given.data, given.weights, given.split_seed)
    known, _ = inputs.parts(1 - HELD_OUT)
    images = known.drawn(given.records or request.score_records or given.held_out, given.split_seed)
    loaded = load_network(given.model, given.weights, given.split_seed)
    look_at(loaded.model, images, given.model, given.split_seed)
    data = list(images.batches(request.batch_size, image_argument(loaded.model)))
    granularity = request.granularity or "conv"
    layers = named_layers(loaded.model, granularity, example=example_of(loaded.model, data[0]))
    evidence = Evidence(
        model=loaded.model,
        weights=tensors_in_memory(loaded.model, loaded.source) if "weights" in needs else None,
        data=data,
        loss=image_loss,
        granularity=granularity,
        provenance=Provenance(
            model=loaded.identity(), data=({**_identity(images), "batches": len(data)},), versions=versions()
        ),
        checkpoint=run.checkpoint,
    )
    return evidence, layers


def _identity(images: Images) -> dict[str, object]:
    content = hashlib.sha256(images.pixels.tobytes() + images.labels.tobytes()).hexdigest()
    return {"id": images.source, "split": "calibration", "sha256": content, "records": len(images)}
