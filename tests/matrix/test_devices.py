"""A base on a GPU and what tuning changed on a disk: nothing that meets the model may be left on the CPU."""

from pathlib import Path

import pytest
import torch

from keylayers.layers.gating import gate_gradients, gated
from keylayers.layers.naming import named_layers
from keylayers.layers.placing import frozen
from keylayers.measures.objective import language_loss
from keylayers.models import deltas_of
from tests.elsewhere import AWAY, Away, elsewhere, sent
from tests.layers.helpers import noisy_copy, with_lora
from tests.tiny_models import build, inputs


def test_what_a_gpu_refuses_is_refused() -> None:
    with elsewhere():
        there = torch.ones(2).to(AWAY)
        assert isinstance(there, Away) and there.tolist() == [1, 1] and not isinstance(there.cpu(), Away)
        assert (there * torch.tensor(2.0)).tolist() == [2, 2]
        for mixed in (lambda: there + torch.ones(2), lambda: torch.equal(there, torch.ones(2))):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mixed()


@pytest.mark.parametrize(
    ("name", "granularity", "kind"),
    [("llama-tied", "linear", "checkpoint"), ("llama", "block", "adapter")],
)
def test_a_tuned_model_on_disk_meets_a_base_elsewhere(tmp_path: Path, name: str, granularity: str, kind: str) -> None:
    tuned = noisy_copy(build(name)) if kind == "checkpoint" else with_lora(build(name), trainable_token_indices=[5])
    tuned.save_pretrained(str(tmp_path))
    here, there = build(name), sent(build(name))
    batch = inputs(name, batch=1, seq=4)
    layers = named_layers(here, granularity)
    wanted = deltas_of(here, tmp_path, layers)
    with elsewhere():
        deltas = deltas_of(there, tmp_path, layers)
        assert torch.allclose(deltas.norms(), wanted.norms(), rtol=1e-5)
        far = {key: value.to(AWAY) for key, value in batch.items()}
        with frozen(there):
            found, rest = gate_gradients(there, deltas, 0.5, lambda: language_loss(there, far)[0].backward())
        with torch.no_grad(), gated(there, deltas.held(), deltas.uniform(1.0)):
            loss = float(language_loss(there, far)[0])
    with frozen(here):
        near, also = gate_gradients(here, wanted, 0.5, lambda: language_loss(here, batch)[0].backward())
    with torch.no_grad(), gated(here, wanted, wanted.uniform(1.0)):
        assert loss == pytest.approx(float(language_loss(here, batch)[0]), rel=1e-4)
    assert torch.allclose(found, near, rtol=1e-3, atol=1e-5) and rest == pytest.approx(also, rel=1e-3, abs=1e-5)
