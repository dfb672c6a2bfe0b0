import torch
from accelerate import Accelerator

from asnn_goose.training.interval import IntervalSums

TAKEN, SKIPPED = torch.zeros(()), torch.ones(())


def test_means_are_over_the_steps_that_were_taken():
    sums = IntervalSums()
    for value, skipped in ((1.0, TAKEN), (float("nan"), SKIPPED), (4.0, TAKEN)):
        sums.add({"loss": torch.tensor(value).double()}, skipped)
    assert sums.steps == 3
    assert sums.means(Accelerator(cpu=True), skipped=1) == {"loss": 2.5}
    sums.clear()
    sums.add({"other": torch.tensor(3.0)}, TAKEN)
    assert sums.means(Accelerator(cpu=True), skipped=0) == {"other": 3.0}
