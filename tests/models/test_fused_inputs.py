import pytest
import torch
from torch import nn

from asnn_goose.models import fused_inputs as module
from asnn_goose.models.fused_inputs import fusible
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.membrane import MembraneSpec
from asnn_goose.spikes.surrogate import SurrogateSpec

pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to fuse a mixer's inputs")
HEADS = (3, 1, 16)


@pytest.fixture
def always(monkeypatch):
    """One token is enough, on any device."""
    monkeypatch.setattr(module, "LEAST_TOKENS", {"cpu": 1, "cuda": 1})


def serves(heads=HEADS, dtype=torch.float32, taps=torch.float32, **choices):
    channels = (heads[0] + 2 * heads[1]) * heads[2]
    encoders = nn.ModuleDict({"k": SpikeEncoder(heads[1] * heads[2], **{"amplitude": "none", **choices})})
    return fusible(torch.zeros(2, 3, channels, dtype=dtype), torch.zeros(4, channels, dtype=taps), heads, encoders)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "choices",
    [
        {}, {"dtype": torch.bfloat16}, {"levels": 4, "scale": "token"}, {"store_alpha": True},
        {"surrogate": SurrogateSpec("ste")}, {"heads": (9, 3, 64)},
    ],
)  # fmt: skip
def test_what_the_operator_can_express_is_fused(choices):
    assert serves(**choices)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "choices",
    [
        {"dtype": torch.float64}, {"taps": torch.bfloat16}, {"heads": (2, 1, 24)}, {"heads": (64, 64, 64)},
        {"levels": 200}, {"amplitude": "scalar"}, {"amplitude": "channel"}, {"learn_alpha": True},
        {"surrogate": SurrogateSpec("atan")}, {"surrogate": SurrogateSpec("recorded_ste")},
        {"membrane": MembraneSpec()},
    ],
)  # fmt: skip
def test_what_it_cannot_express_is_left_to_torch(choices):
    assert not serves(**choices)


def test_few_tokens_and_other_devices_are_left_to_torch(monkeypatch):
    assert not serves()
    monkeypatch.setattr(module, "LEAST_TOKENS", {"cpu": 6})
    assert serves()
    monkeypatch.setattr(module, "LEAST_TOKENS", {"cpu": 7})
    assert not serves()
