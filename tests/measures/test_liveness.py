"""Dead models told from others: constant predictions, whatever their loss."""

import math

import pytest
import torch

from keylayers.errors import Diverged
from keylayers.measures.liveness import dependence, require_alive


def test_dependence_is_the_information_that_the_place_has_of_the_prediction():
    sure = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert dependence(sure) == pytest.approx(math.log(2))  # one of two, known from the place alone
    assert dependence(torch.ones(4, 3, 9)) < 1e-12
    assert dependence(torch.randn(1, 1, 9)) == dependence(torch.zeros(8, 1)) == math.inf


@pytest.mark.parametrize("constant", [torch.zeros(12), torch.linspace(-3, 9, 12)])  # ln V, and any other loss
def test_a_model_of_constant_predictions_is_dead(constant):
    with pytest.raises(Diverged, match=r"whatever it is given.*among 12 is 2\.4849 nats\); lower --lr"):
        require_alive(constant.expand(2, 5, 12), "lower --lr")
    require_alive(constant.expand(2, 5, 12) + 0.01 * torch.randn(2, 5, 12), "")
    with pytest.raises(Diverged, match="not finite; lower --lr"):
        require_alive(torch.full((2, 3, 4), math.nan), "lower --lr")
