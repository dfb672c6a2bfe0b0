"""The course of the learning rate: over each stage by itself, or once over the whole run."""

from asnn_goose.config_training import TrainingOptions
from asnn_goose.training.optimizer import learning_rate_share
from asnn_goose.training.stages import StagePlan


def rate_share(plan: StagePlan, done: int, training: TrainingOptions) -> float:
    """Share of the peak learning rate at the update that follows `done` finished ones of a stage.

    A warm-up that a stage has of its own takes the place of the recipe's, or is a factor on the course of the run.
    """
    own = plan.warmup_steps
    if training.learning_rate_course == "stage":
        course = training if own is None else training.model_copy(update={"warmup_steps": own})
        return learning_rate_share(done, plan.steps, course)
    share = learning_rate_share(plan.first_step + done, plan.run_steps or plan.steps, training)
    if own is None or done >= own:
        return share
    return share * (done if training.warmup_from_zero else done + 1) / own
