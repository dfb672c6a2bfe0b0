import torch

from asnn_goose.evaluation.observation import Observation, SiteObservation


def test_an_observation_has_as_many_rows_as_its_teacher_read():
    spikes, hidden = torch.zeros(3, 5, 2), torch.zeros(3, 5, 4)
    seen = Observation({(0, "k"): SiteObservation(spikes, spikes)}, {0: spikes}, (hidden,), (hidden, hidden))
    assert seen.rows == 3
