import pytest

from asnn_goose.errors import ConfigError
from asnn_goose.presets import load_recipe

MIXED = "spikes.threshold={kind: mixed}"
PLAIN = "spikes.scale=none"
REFUSALS = {
    (MIXED,): (
        "spikes.threshold.kind=mixed gives each channel a threshold of its own, and spikes.scale=token one step to all "
        "of a token: set spikes.scale=none"
    ),
    ("spikes.threshold={kind: learned, per: channel}",): (
        "spikes.threshold.per=channel gives each channel a threshold of its own, and spikes.scale=token one step to "
        "all of a token: set spikes.scale=none"
    ),
    (PLAIN, MIXED, "spikes.membrane={}"): (
        "spikes.threshold.kind=mixed goes with no membrane and no quantized encoder: set spikes.membrane=null and "
        "spikes.encoder=ternary or binary"
    ),
    ("spikes.threshold={kind: progressive}",): (
        "spikes.threshold.kind=progressive says what thresholds are, and spikes.calibrate=true would search for them: "
        "set spikes.calibrate=false"
    ),
    ("spikes.amplitude=scalar", "spikes.amplitude_range=[2, 4]"): (
        "spikes.amplitude_range=[2.0, 4.0] with spikes.amplitude=scalar: amplitudes start from 0.9 to 1.1, give a "
        "range around that such as [0.25, 4], or null"
    ),
    ("spikes.amplitude_range=[0.25]",): "spikes.amplitude_range[1] is missing: the list is too short",
    ("spikes.amplitude_init=random",): "spikes.amplitude_init: expected 'ones' or 'jitter', got \"random\"",
    ("spikes.threshold={kind: mixed, channel_share: 0}",): (
        "spikes.threshold.channel_share: expected a value greater than 0, got 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSALS)
def test_a_threshold_that_cannot_be_is_refused_in_one_line(overrides):
    with pytest.raises(ConfigError) as refused:
        load_recipe("convert-pocket", list(overrides))
    assert str(refused.value) == REFUSALS[overrides]


@pytest.mark.parametrize("threshold", ["{kind: learned, per: channel}", "{kind: mixed}", "{kind: progressive}"])
def test_every_threshold_goes_with_unit_spikes(threshold):
    recipe = load_recipe("convert-pocket", [PLAIN, f"spikes.threshold={threshold}"])
    assert recipe.spikes.threshold.alpha > 0
