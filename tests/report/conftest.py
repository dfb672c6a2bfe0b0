import pytest

from asnn_goose.checks import check
from asnn_goose.measurements import Curve
from asnn_goose.results import ModelResult, Protocol, Ratio, Results, SiteSpikes, SpikeResult


@pytest.fixture
def results():
    history = Curve(steps=(10, 20), values=(0.4, 0.38))
    layers = tuple(SiteSpikes(layer=0, site=site, density=0.38, history=history) for site in "kv")
    return Results(
        version="0.1.0",
        recipe="<quick & start>",
        recipe_hash="0" * 64,
        seed=1,
        platform="local",
        stop_reason="early_stopping",
        protocol=Protocol(kind="standard", tokenizer="gpt2", window=256, stride=256, tokens=16384),
        teacher=ModelResult(name="gpt2", parameters=124439808, perplexity=20.0),
        student=ModelResult(parameters=74215690, perplexity=30.0),
        ratio=Ratio(to_teacher=1.5),
        spikes=SpikeResult(density=0.38, layers=layers, amplitudes={"layer_0": {"k": 1.25}}),
        checks=(check("density", 0.38, ">", 0.1), check("mfu", None, ">", 0.35)),
    )
