import numpy as np
import pytest
import torch

from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.feed import Batch
from asnn_goose.data.tokens import TokenRows
from asnn_goose.errors import ConfigError
from asnn_goose.training import hidden_cache
from asnn_goose.training.hidden_cache import HiddenCache
from asnn_goose.training.step import TeacherView
from asnn_goose.training.work import StageWork

CPU = torch.device("cpu")


@pytest.fixture
def cache():
    return HiddenCache(5, 3, 2, torch.bfloat16, CPU)


def test_what_is_recalled_is_what_was_kept_row_by_row(cache):
    hidden = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert not cache.holds(np.array([1]))
    cache.keep(np.array([4, 1]), hidden)
    assert cache.holds(np.array([1, 4]))
    assert not cache.holds(np.array([1, 2]))
    assert torch.equal(cache.recall(np.array([1, 4])), hidden.flip(0))
    with torch.inference_mode():
        out = torch.zeros_like(hidden)
    assert torch.equal(cache.recall(np.array([4, 4]), out=out), hidden[:1].expand(2, -1, -1))


def test_what_does_not_fit_is_refused_with_the_sizes(monkeypatch):
    monkeypatch.setattr(hidden_cache, "free_bytes", lambda device: 3_000_000_000)
    with pytest.raises(ConfigError, match=r"would keep 1\.6 GB of 1,000 rows, and cpu has 3\.0 GB free"):
        HiddenCache(1000, 1000, 800, torch.bfloat16, CPU)


def test_a_second_epoch_asks_the_teacher_nothing_and_sees_the_same(teacher):
    tokens = np.random.default_rng(0).integers(0, 4096, 60, dtype=np.uint16)
    plan, asked = BatchPlan(TokenRows(tokens, 10, 10), 3, 0), []

    def observe(ids):
        asked.append(len(ids))
        return TeacherView(teacher.hidden_states(ids))

    work = StageWork(None, plan, None, observe, None, None, HiddenCache(6, 10, 256, torch.float32, CPU))
    for cursor in range(0, 18, 3):
        batch = Batch(plan.batch(cursor), plan.row_numbers(cursor))
        torch.testing.assert_close(work.see(batch).hidden, teacher.hidden_states(batch.ids), rtol=0.0, atol=1e-4)
    assert sum(asked) == 6
