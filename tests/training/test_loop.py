from asnn_goose.config import TrainingBySteps, TrainingByTokens
from asnn_goose.training.loop import tokens_per_step, total_steps


def test_a_step_sums_over_rows_windows_micro_batches_and_processes() -> None:
    training = TrainingBySteps(steps=5, batch_size=4, window=32, accumulation=3)
    assert tokens_per_step(training, processes=2) == 4 * 32 * 3 * 2


def test_a_budget_in_tokens_is_rounded_up_to_whole_steps() -> None:
    training = TrainingByTokens(tokens=1000, batch_size=4, window=32)
    assert total_steps(training, processes=1) == 8
    assert total_steps(training, processes=2) == 4


def test_a_budget_in_steps_is_taken_as_it_is() -> None:
    assert total_steps(TrainingBySteps(steps=5), processes=4) == 5
