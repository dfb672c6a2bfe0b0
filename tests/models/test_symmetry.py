import math

import pytest
import torch

from asnn_goose.models.symmetry import equal_amplitudes


def fresh(make_student, **spikes):
    """A student whose encoders are as they start."""
    student = make_student(spikes=spikes)
    torch.manual_seed(0)
    for mixer in student.model.mixers():
        for encoder in mixer.encoders.values():
            encoder.reset_parameters()
    return student


def trained(make_student, **spikes):
    """A wkv student of unit spikes after some steps of Adam on a loss that sees k and v alike: as their product."""
    student = fresh(make_student, surrogate={"kind": "recorded_ste"}, **spikes)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    ids = torch.randint(0, student.config.vocab_size, (2, 10))
    for _ in range(3):
        student(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student


@pytest.mark.parametrize("amplitude", ["scalar", "channel"])
def test_equal_starts_stay_equal_and_a_jitter_keeps_them_apart(make_student, amplitude):
    twins = trained(make_student, amplitude=amplitude)
    assert equal_amplitudes(twins) < 1e-9
    assert all((mixer.encoders["k"].amplitude - 1).abs().max() > 1e-3 for mixer in twins.model.mixers())
    assert equal_amplitudes(trained(make_student, amplitude=amplitude, amplitude_init="jitter")) > 1e-3


def test_the_largest_difference_of_all_layers_counts(make_student):
    student = fresh(make_student, amplitude="channel")
    student.model.mixers()[1].encoders["v"].amplitude.data[3] = 1.75
    assert equal_amplitudes(student) == 0.75


def test_without_amplitudes_there_is_nothing_to_compare(make_student):
    assert math.isnan(equal_amplitudes(make_student(spikes={"amplitude": "none"})))
    assert math.isnan(equal_amplitudes(make_student(spikes={"sites": ["k"]})))
