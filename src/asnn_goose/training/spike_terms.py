"""What an objective adds for the sake of spikes: less activity, like amplitudes, thresholds that do not collapse."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from asnn_goose.config_objective import Activity, Objective
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.spikes.penalties import amplitude_variance, excess_activity, threshold_collapse


class SpikePenalties:
    """The penalties of one objective on one student.

    Args:
        student: The model that spikes.
        objective: What is minimized.
    """

    def __init__(self, student: GooseForCausalLM, objective: Objective) -> None:
        self.objective = objective
        self._encoders = list(site_encoders(student).values())
        self._wanted = {} if objective.activity is None else wanted_events(student, objective.activity)

    def of(self, events: Sequence[Mapping[str, Tensor]] | None) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of each penalty, given the events of a forward pass."""
        activity, collapse = self.objective.activity, self.objective.threshold_collapse
        if activity is not None and events is not None:
            yield "activity_penalty", activity.weight, excess_activity(events, self._wanted, activity.form)
        if self._encoders and self.objective.amplitude_variance:
            yield "amplitude_variance", self.objective.amplitude_variance, amplitude_variance(self._encoders)
        if self._encoders and collapse is not None:
            yield "threshold_collapse", collapse.weight, threshold_collapse(self._encoders, collapse.least_alpha)


def wanted_events(student: GooseForCausalLM, activity: Activity) -> dict[str, float]:
    """Events per activation that each site should not exceed: those that linear layers read, and those it names."""
    present = {name.split(".")[1] for name in site_encoders(student)}
    read = dict.fromkeys(sorted(present - {"k", "v"}), activity.events)
    return read | {site: events for site, events in activity.sites.items() if site in present}


def watch_activity(student: GooseForCausalLM, objective: Objective | None) -> None:
    """Let the encoders that the objective limits count what they send, and no others."""
    activity = None if objective is None else objective.activity
    wanted = {} if activity is None else wanted_events(student, activity)
    for name, encoder in site_encoders(student).items():
        encoder.counts_events = name.split(".")[1] in wanted
