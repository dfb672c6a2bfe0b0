from math import log2

import pytest
import torch

from asnn_goose.evaluation.observation import Observation, SiteObservation
from asnn_goose.evaluation.recorded_estimators import (
    recorded_cka,
    recorded_estimates,
    recorded_mutual_information,
)
from asnn_goose.evaluation.synthetic_spikes import synthetic_observations

RECORDED_INFORMATION_GATE, RECORDED_CKA_GATE = 0.1, 0.3
ROUNDING = 1e-6
"""Of the moments in float64 and the addend that keeps CKA's quotient finite."""


def test_a_sign_that_is_its_coordinate_s_sign_tells_one_bit():
    signs = torch.tensor([-1.0, 1.0]).repeat(500)[:, None]
    assert recorded_mutual_information(signs, 3 * signs) == pytest.approx(1.0)


def test_three_equally_frequent_values_tell_log_three():
    spikes = torch.tensor([-2.0, 0.0, 1.0]).repeat(300)[:, None]
    assert recorded_mutual_information(spikes, spikes.sign()) == pytest.approx(log2(3))


def test_only_coordinates_of_the_same_number_are_compared():
    spikes = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0)).sign()
    assert recorded_mutual_information(spikes, spikes) > 0.99
    assert recorded_mutual_information(spikes, spikes.flip(1)) < 0.01


def test_independent_data_get_bits_that_are_not_there():
    drawn = torch.Generator().manual_seed(0)
    spikes, hidden = torch.randint(-1, 2, (500, 8), generator=drawn).float(), torch.rand(500, 8, generator=drawn)
    assert recorded_mutual_information(spikes, hidden) == pytest.approx(62 / (2 * 500 * 0.6931), rel=0.15)


def test_a_constant_coordinate_tells_nothing():
    assert recorded_mutual_information(torch.ones(10, 3), torch.zeros(10, 3)) == 0.0


def test_cka_of_a_state_with_itself_is_one_and_tokens_beyond_5000_do_not_count():
    x = torch.randn(6000, 4, generator=torch.Generator().manual_seed(0))
    assert recorded_cka(x, x) == pytest.approx(1.0, abs=ROUNDING)
    changed = x.clone()
    changed[5000:] = 7.0
    assert recorded_cka(x, changed) == pytest.approx(1.0, abs=ROUNDING)


def observation(k, v, hidden):
    sites = {(0, site): SiteObservation(spikes[None], spikes[None]) for site, spikes in (("k", k), ("v", v))}
    return Observation(sites, {}, (), (hidden[None],))


def test_a_channel_counts_as_active_where_k_or_v_spikes():
    k = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    v = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = recorded_estimates([observation(k, v, torch.randn(4, 3))], {0: -1})
    # active: 3, 0 and 4 of 4 tokens
    assert found.firing_rate == pytest.approx(7 / 12, abs=ROUNDING)
    assert found.dead_fraction == pytest.approx(1 / 3, abs=ROUNDING)
    assert found.saturated_fraction == pytest.approx(1 / 3, abs=ROUNDING)


def test_without_k_and_v_there_is_no_recorded_estimate():
    spikes = torch.ones(1, 4, 3)
    seen = Observation({(0, "ffn_in"): SiteObservation(spikes, spikes)}, {}, (), (spikes,))
    assert recorded_estimates([seen], {0: -1}) is None


def test_batches_do_not_change_recorded_estimates():
    whole, parts = (
        recorded_estimates(synthetic_observations("perfect", rows=4, time=16, width=8, rows_per_batch=size), {0: -1})
        for size in (4, 1)
    )
    assert whole == parts


def test_spikes_that_know_everything_fail_the_recorded_gates():
    found = recorded_estimates(synthetic_observations("perfect"), {0: -1})
    assert found.mutual_information_bits < RECORDED_INFORMATION_GATE
    assert found.cka < RECORDED_CKA_GATE
    assert found.firing_rate > 0.6
