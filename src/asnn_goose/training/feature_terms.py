"""What an objective adds for the sake of hidden states: alignment, feature dynamics, spikes that mean something."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.config import Recipe
from asnn_goose.config_features import CkaDynamics, FeatureDynamics
from asnn_goose.config_objective import Objective
from asnn_goose.config_student import GooseStudent
from asnn_goose.errors import TeacherError
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.anatomy import LLAMA_FAMILY, body_blocks
from asnn_goose.models.from_teacher import kept_layers
from asnn_goose.models.student import GooseForCausalLM, GooseOutput
from asnn_goose.models.teacher import Teacher
from asnn_goose.objectives.alignment import AlignmentTerm
from asnn_goose.objectives.dynamics import CkaTerm, KillSwitch, PredictionTerm
from asnn_goose.objectives.features import StateError
from asnn_goose.objectives.layer_maps import Depths
from asnn_goose.objectives.semantics import SemanticTerm
from asnn_goose.objectives.terms import Seen, Term

PROJECTOR_SEED = 7_919
"""Added to the run's seed, so that projectors are not drawn from the numbers that the student's weights were."""


@dataclass(frozen=True)
class FeatureSetting:
    """Sizes of both models, and what reads the teacher's states.

    Attributes:
        depths: Their blocks.
        widths: Channels of the student's and of the teacher's stream.
        head: The teacher's output head.
        norm: The norm before it.
    """

    depths: Depths
    widths: tuple[int, int]
    head: LinearHead
    norm: nn.Module


class FeatureTerms(nn.Module):
    """The terms of one objective on hidden states, with what learns beside the student for them.

    Args:
        objective: What is minimized.
        setting: The two models.
        seed: Of the projectors' starting weights.
        error: A compiled form of what alignment compares states by; None takes the plain one.

    Raises:
        ConfigError: Terms that do not fit the two models.
    """

    def __init__(
        self, objective: Objective, setting: FeatureSetting, seed: int, error: StateError | None = None
    ) -> None:
        super().__init__()
        # Not a module itself, so that nothing of the teacher becomes a parameter.
        self.setting = setting
        depths, widths = setting.depths, setting.widths
        self.alignment: AlignmentTerm | None = None
        self.dynamics: CkaTerm | PredictionTerm | None = None
        self.semantic: SemanticTerm | None = None
        if objective.hidden_alignment is not None:
            generator = torch.Generator().manual_seed(seed + PROJECTOR_SEED)
            self.alignment = AlignmentTerm(objective.hidden_alignment, depths, widths, generator, error)
        self.switch: KillSwitch | None = None
        chosen = objective.feature_dynamics
        if chosen is not None:
            self.dynamics = _dynamics(chosen, objective.chunk_tokens, setting)
            self.switch = None if chosen.kill_ratio is None else KillSwitch(chosen.warmup_steps, chosen.kill_ratio)
        if objective.semantic is not None:
            self.semantic = SemanticTerm(objective.semantic, depths, widths)
        device = setting.head.weight.device
        self.to(device)
        terms = (self.alignment, self.dynamics, self.semantic)
        self._terms = tuple(cast(Term, term) for term in terms if term is not None)
        self.states = tuple(sorted(frozenset().union(*(term.states for term in self._terms))))
        """The teacher's states that are to be shown, in this order."""
        # On the device, so that nothing but numbers changes while compiled or recorded work goes on.
        self._levels = [torch.ones((), device=device) for _ in self._terms]
        self._shares = [1.0 for _ in self._terms]
        self.reach(0, off=False)

    def of(
        self,
        student: GooseForCausalLM,
        found: GooseOutput,
        hidden: Float[Tensor, "batch time read_width"],
        stream: Sequence[Float[Tensor, "batch time teacher_width"]],
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, weight and value of each term, given what the student found and the teacher shows: see `states`."""
        seen = Seen(student, found, dict(zip(self.states, stream, strict=True)), hidden)
        for term, level in zip(self._terms, self._levels, strict=True):
            for value in term.of(seen):
                yield value.name, value.weight * level, value.value

    def figures(self) -> dict[str, Tensor]:
        """What the log shows beside the terms: the share of the dynamics' weight that counts."""
        if self.dynamics is None:
            return {}
        return {"dynamics_share": self._levels[self._terms.index(self.dynamics)].clone()}

    def reach(self, done: int, off: bool) -> None:
        """Set what holds after `done` steps of the stage, `off` once dynamics are off; nothing waits for the device."""
        for number, (term, level) in enumerate(zip(self._terms, self._levels, strict=True)):
            share = term.share(done, off)
            if share != self._shares[number]:
                level.fill_(share)
                self._shares[number] = share

    def continue_from(self, before: "FeatureTerms | None") -> None:
        """Take over what an earlier stage's alignment has learned, where it learned the same."""
        if before is None or self.alignment is None or before.alignment is None:
            return
        ours, theirs = self.alignment.state_dict(), before.alignment.state_dict()
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (ours, theirs)]
        if shapes[0] == shapes[1]:
            self.alignment.load_state_dict(theirs)


def _dynamics(options: FeatureDynamics, chunk_tokens: int, setting: FeatureSetting) -> CkaTerm | PredictionTerm:
    if isinstance(options, CkaDynamics):
        return CkaTerm(options, setting.depths, setting.widths)
    return PredictionTerm(options, setting.depths, setting.norm, setting.head, chunk_tokens)


def feature_setting(recipe: Recipe, teacher: Teacher) -> FeatureSetting:
    """A recipe's student beside its teacher.

    Raises:
        ConfigError: More blocks are to be kept than the teacher has.
        TeacherError: A teacher whose residual stream is not known.
    """
    family = teacher.model.config.model_type
    if family not in ("gpt2", *LLAMA_FAMILY):
        raise TeacherError(
            f"{teacher.name} is a {family} model: hidden states are seen in gpt2, {', '.join(LLAMA_FAMILY)}; take one "
            "of these, or drop objective.hidden_alignment, feature_dynamics and semantic"
        )
    blocks, norm = body_blocks(teacher.model.base_model)
    width, student = int(teacher.head.weight.shape[1]), recipe.student
    if isinstance(student, GooseStudent):
        kept = tuple(kept_layers(student.keep_layers, len(blocks)))
        return FeatureSetting(Depths(len(kept), len(blocks), kept), (width, width), teacher.head, norm)
    return FeatureSetting(Depths(student.layers, len(blocks)), (student.width, width), teacher.head, norm)


def build_features(
    objective: Objective, recipe: Recipe, teacher: Teacher, error: StateError | None = None
) -> FeatureTerms | None:
    """The terms of an objective on hidden states, or None if it has none.

    Raises:
        GooseError: As `FeatureTerms` and `feature_setting`.
    """
    if not objective.follows_hidden_states:
        return None
    return FeatureTerms(objective, feature_setting(recipe, teacher), recipe.training.seed, error)


def check_features(recipe: Recipe, teacher: Teacher) -> None:
    """Refuse objectives that do not fit student and teacher, before text is read and anything is trained.

    Raises:
        GooseError: As `build_features`.
    """
    for objective in recipe.objectives:
        build_features(objective, recipe, teacher)


def show_spikes(student: GooseForCausalLM, features: FeatureTerms | None) -> None:
    """Let the encoders that an objective compares with the teacher show what they send, and no others."""
    semantic = None if features is None else features.semantic
    blocks = set() if semantic is None else {block for block, _ in semantic.pairs}
    wanted = {f"layer_{block}.{site}" for block in blocks for site in ("k", "v")}
    for name, encoder in site_encoders(student).items():
        encoder.shows_spikes = name in wanted
