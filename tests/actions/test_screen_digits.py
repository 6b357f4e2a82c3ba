"""A network really trained on poisoned digits: the published claim where it holds, and the promise on new images."""

import numpy as np
import torch

from keylayers.actions.screen_fitting import fit_screen
from keylayers.criteria.class_separation import layers_of_interest, score_class_separation
from keylayers.criteria.protocol import Evidence
from keylayers.data.images import load_images, part_images
from keylayers.layers.naming import named_layers
from keylayers.maths.triggers import Patch
from keylayers.measures.detection import rate_detection
from keylayers.measures.objective import image_loss
from keylayers.models.digits import DigitsResNet
from keylayers.scores.selection import Selection
from keylayers.training.images import ImageTraining, train_images

TARGET = 1


def test_layers_of_interest_find_what_the_last_block_lets_pass() -> None:
    sizes = {"train": 1000, "reference": 250, "calibration": 150, "test": 397}
    parts, trigger = part_images(load_images("bundled:digits"), sizes, seed=0), Patch(2)
    x, y = parts.train.tensors()
    poisoned = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:100]
    x[poisoned], y[poisoned] = trigger(x[poisoned]), TARGET
    torch.manual_seed(0)
    model = DigitsResNet()
    train_images(model, x, y, ImageTraining(epochs=6))
    clean, labels = parts.test.tensors()
    with torch.no_grad():
        attacked = trigger(clean[labels != TARGET])
        fooled = model(attacked).argmax(1) == TARGET
        assert float(fooled.float().mean()) > 0.9 and float((model(clean).argmax(1) == labels).float().mean()) > 0.95

    reference, calibration = list(parts.reference.batches(50)), list(parts.calibration.batches(50))
    layers = named_layers(model, "block")
    evidence = Evidence(model=model, data=reference, loss=image_loss, granularity="block")
    chosen = layers_of_interest(score_class_separation(evidence, layers))
    found = []
    for selection in (chosen, Selection.of(layers, blocks=[5])):
        screen = fit_screen(model, selection, reference, calibration)
        good, bad = (screen.screened(model, {"x": one}) for one in (clean, attacked[fooled]))
        found.append(rate_detection(good.suspicion, bad.suspicion, flags=(good.flags, bad.flags)))
    interest, last = found
    assert interest.auroc.low > last.auroc.high and interest.auroc.estimate > 0.9
    assert interest.tpr is not None and last.tpr is not None and interest.fpr is not None
    assert interest.tpr.estimate > last.tpr.estimate
    assert interest.fpr.low <= 0.05 and np.isfinite(list(screen.thresholds)).all()
