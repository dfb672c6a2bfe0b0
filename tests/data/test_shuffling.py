import numpy as np

from asnn_goose.data.shuffling import epoch_permutation, shuffled_places

ROWS = 13


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_permutation(ROWS, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_any_epoch_visits_every_row_once():
    found = shuffled_places(ROWS, np.arange(7 * ROWS, 9 * ROWS), seed=3).reshape(2, ROWS)
    assert [sorted(epoch) for epoch in found.tolist()] == [list(range(ROWS))] * 2
