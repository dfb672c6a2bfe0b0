import pytest
import torch

from asnn_goose.evaluation.encoder_evidence import amplitude_gap, encoder_evidence, gradient_norm
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.surrogate import SurrogateSpec

IDS = torch.arange(16).reshape(2, 8) % 11


def student(**spikes: object) -> GooseForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "max_position_embeddings": 8}
    config = GooseConfig(**shape, spikes={"sites": ["k", "v"], **spikes})
    return GooseForCausalLM(config)


def test_ternary_spikes_have_three_values_and_no_strange_one() -> None:
    found = encoder_evidence(student(), IDS)
    assert (found.spikes, found.distinct_values, found.strange_values) == (True, 3, 0)


def test_spikes_of_more_levels_are_counted_as_what_they_are() -> None:
    found = encoder_evidence(student(levels=4, alpha=0.1), IDS)
    assert found.distinct_values > 3
    assert found.strange_values == found.distinct_values - 3


def test_key_and_value_of_each_layer_can_be_adapted() -> None:
    assert encoder_evidence(student(), IDS).adaptable == 4


def test_a_dense_twin_has_no_evidence_of_spikes() -> None:
    found = encoder_evidence(student(sites=[]), IDS)
    assert (found.spikes, found.distinct_values, found.gradient_norm, found.amplitude_gap) == (False, None, None, None)
    assert (found.adaptable, found.amplitudes) == (4, ())


def test_the_recorded_estimator_passes_every_gradient_as_it_is() -> None:
    encoder = SpikeEncoder(64, amplitude="none", surrogate=SurrogateSpec(kind="recorded_ste"))
    assert gradient_norm(encoder) == pytest.approx((2 * 16 * 64) ** 0.5, rel=1e-6)


def test_the_gap_is_the_largest_over_layers_and_channels() -> None:
    spiking = student(amplitude="channel")
    encoders = site_encoders(spiking)
    assert amplitude_gap(encoders) == 0.0
    with torch.no_grad():
        encoders["layer_0.k"].amplitude[3] += 0.25
        encoders["layer_1.v"].amplitude[1] -= 0.5
    assert amplitude_gap(encoders) == 0.5
    assert sorted(set(encoder_evidence(spiking, IDS).amplitudes)) == [0.5, 1.0, 1.25]


def test_amplitudes_of_one_site_alone_have_no_gap() -> None:
    assert amplitude_gap(site_encoders(student(sites=["k"]))) is None
