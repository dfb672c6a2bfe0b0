"""How far the student's sites have become spikes while a ramp raises them."""

import torch

from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.training.stages import StagePlan


class Hardness:
    """Sets the hardness of every encoder for one stage: 0 for sites that rise later, then from 0 to 1, then spikes.

    Encoders of sites that rise together share one number on the student's device, so that nothing but this number
    changes while compiled or recorded work goes on.

    Args:
        student: The model that spikes.
        plan: The stage.
    """

    def __init__(self, student: GooseForCausalLM, plan: StagePlan) -> None:
        self.plan = plan
        encoders = site_encoders(student)
        present = {name.split(".")[1] for name in encoders}
        device = student.lm_head.weight.device
        self._dense = plan.dense & present
        places = [] if plan.ramp is None else [set(place) & present for place in plan.ramp.places]
        # A site that the student has not takes no time.
        self._places = [place for place in places if place]
        self._levels = [torch.zeros((), device=device) for _ in self._places]
        self._shares = [0.0 for _ in self._places]
        numbers = dict.fromkeys(self._dense, torch.zeros((), device=device))
        for place, level in zip(self._places, self._levels, strict=True):
            numbers |= dict.fromkeys(place, level)
        for name, encoder in encoders.items():
            encoder.hardness = numbers.get(name.split(".")[1])

    def reach(self, done: int) -> None:
        """Set what holds after `done` steps of the stage; nothing waits for the device."""
        for number, level in enumerate(self._levels):
            share = self._share(number, done)
            if share != self._shares[number]:
                level.fill_(share)
                self._shares[number] = share

    @property
    def complete(self) -> bool:
        """Whether every site is spikes."""
        return not self._dense and all(share == 1.0 for share in self._shares)

    def _share(self, number: int, done: int) -> float:
        if self.plan.ramp is None:
            return 1.0
        each = self.plan.ramp.steps / len(self._places)
        # Rounded, so that the last step of a place is its end to the bit.
        return min(1.0, max(0.0, round((done - number * each) / each, 9)))
