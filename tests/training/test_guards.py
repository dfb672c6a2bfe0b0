import os
import signal

import pytest
import torch

from asnn_goose.training.guards import ROLL_BACK_AFTER, NonFiniteGuard, stop_requests

FINE, BROKEN = torch.tensor(1.0), torch.tensor(float("nan"))


@pytest.fixture
def guard() -> NonFiniteGuard:
    return NonFiniteGuard(torch.device("cpu"))


def test_a_finite_step_is_taken_and_not_counted(guard: NonFiniteGuard) -> None:
    assert float(guard.judge(FINE, FINE)) == 0.0
    assert guard.read().skipped == 0


@pytest.mark.parametrize(("norm", "loss"), [(BROKEN, FINE), (FINE, BROKEN), (torch.tensor(float("inf")), FINE)])
def test_a_non_finite_norm_or_loss_skips_the_step(
    guard: NonFiniteGuard, norm: torch.Tensor, loss: torch.Tensor
) -> None:
    assert float(guard.judge(norm, loss)) == 1.0
    assert guard.read().skipped == 1


def test_only_a_row_of_skipped_steps_asks_for_a_roll_back(guard: NonFiniteGuard) -> None:
    for step in range(4 * ROLL_BACK_AFTER):
        guard.judge(BROKEN if step % 2 else FINE, FINE)
    assert not guard.read().must_roll_back
    for _ in range(ROLL_BACK_AFTER):
        guard.judge(BROKEN, FINE)
    assert guard.read().must_roll_back


def test_a_row_that_spans_two_readings_is_seen_whole(guard: NonFiniteGuard) -> None:
    for _ in range(ROLL_BACK_AFTER - 1):
        guard.judge(BROKEN, FINE)
    assert not guard.read().must_roll_back
    guard.judge(BROKEN, FINE)
    assert guard.read().must_roll_back


def test_after_a_roll_back_the_row_starts_anew(guard: NonFiniteGuard) -> None:
    for _ in range(ROLL_BACK_AFTER):
        guard.judge(BROKEN, FINE)
    guard.forget_row()
    assert not guard.read().must_roll_back


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_only_asks_to_stop(number: int) -> None:
    with stop_requests() as stop_asked:
        assert not stop_asked()
        os.kill(os.getpid(), number)
        assert stop_asked()


def test_the_second_interrupt_is_at_once() -> None:
    with stop_requests():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests():
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_gradient_that_the_norm_leaves_out_is_judged_too(guard: NonFiniteGuard) -> None:
    assert float(guard.judge(FINE, FINE, FINE, BROKEN)) == 1.0
    assert float(guard.judge(FINE, FINE, FINE)) == 0.0
