"""Builds the student a recipe describes, for the vocabulary of its teacher."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from asnn_goose.config_student import GooseStudent, Spikes, WkvStudent
from asnn_goose.config_threshold import LearnedThreshold, MixedThreshold, ProgressiveThreshold
from asnn_goose.errors import ConfigError
from asnn_goose.models.anatomy import TeacherAnatomy, learned_positions, teacher_anatomy
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.folding import untie_head
from asnn_goose.models.from_teacher import copy_from_teacher, kept_layers
from asnn_goose.models.loading import LoadedModel
from asnn_goose.models.plan import spike_fed_mac_share
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import Teacher

logger = logging.getLogger(__name__)


def build_student(student: WkvStudent | GooseStudent, spikes: Spikes, teacher: Teacher, seed: int) -> GooseForCausalLM:
    """The student of a recipe, the same for the same seed; the global generator is left as it was.

    Raises:
        ConfigError: Its weights are to come from a teacher of another shape, or from blocks the teacher has not.
        TeacherError: Its shape or weights are to come from a teacher of an architecture that is not supported.
    """
    if isinstance(student, WkvStudent) and student.initialization == "random":
        return _with_own_head(fresh_student(student_config(student, spikes, teacher), seed), spikes)
    anatomy = teacher_anatomy(teacher.model, teacher.name)
    if isinstance(student, GooseStudent):
        kept = kept_layers(student.keep_layers, len(anatomy.blocks))
        config = goose_config(student, spikes, teacher, anatomy, len(kept))
    else:
        check_shape(student, anatomy, teacher.name)
        kept = kept_layers(student.layers, len(anatomy.blocks))
        config = student_config(student, spikes, teacher)
        config.mlp_bias, config.norm_eps = anatomy.mlp_bias, anatomy.norm_eps
    made = fresh_student(config, seed)
    if student.initialization == "teacher":
        copy_from_teacher(made, anatomy, kept)
    return _with_own_head(made, spikes)


def check_windows(model: Teacher | LoadedModel, windows: Mapping[str, int]) -> None:
    """Refuse windows that reach past a model's learned positions; past computed ones it runs, with a warning.

    A student does not help where its teacher ends: both read the same windows.

    Args:
        model: Teacher or student.
        windows: Tokens a window holds, by the name the user gave it under, such as `training.window`.

    Raises:
        ConfigError: A window is longer than the learned positions.
    """
    learned = learned_positions(model.model)
    limit = learned or getattr(model.model.config, "max_position_embeddings", None)
    longer = [f"{name}={window}" for name, window in windows.items() if limit and window > limit]
    if not longer:
        return
    if learned:
        raise ConfigError(
            f"{' and '.join(longer)}: longer than the {learned} learned positions of {model.name}; give {learned} or "
            "fewer tokens, or a model with more positions"
        )
    logger.warning(
        "%s: %s is made for %d tokens and may predict worse beyond; give %d or fewer",
        " and ".join(longer), model.name, limit, limit,
    )  # fmt: skip


def check_shape(student: WkvStudent, anatomy: TeacherAnatomy, name: str) -> None:
    """Refuse a student into whose places the teacher's weights do not fit.

    Raises:
        ConfigError: Its shape is another; the line names what to give.
    """
    inner = student.feedforward_width or 4 * student.width
    wanted = [
        f"student.{key}={value}"
        for key, value, found in (
            ("width", anatomy.width, student.width),
            ("feedforward_width", anatomy.feedforward_width, inner),
            ("norm", anatomy.norm, student.norm),
            ("mlp", anatomy.mlp, student.mlp),
            ("positions", anatomy.positions, student.positions),
            ("tie_head", str(anatomy.tie_head).lower(), str(student.tie_head).lower()),
        )
        if value != found
    ]
    if anatomy.positions == "learned" and student.max_positions != anatomy.max_positions:
        wanted.append(f"student.max_positions={anatomy.max_positions}")
    if student.layers > len(anatomy.blocks):
        wanted.append(f"student.layers={len(anatomy.blocks)} (or fewer)")
    if wanted:
        raise ConfigError(
            f"student.initialization=teacher copies from {name}, whose shape is another; give {' '.join(wanted)}, "
            "or student.initialization=random"
        )


def goose_config(
    student: GooseStudent, spikes: Spikes, teacher: Teacher, anatomy: TeacherAnatomy, layers: int
) -> GooseConfig:
    """The transformers configuration of a student in its teacher's shape."""
    heads = anatomy.heads
    parts = anatomy.blocks[0].parts
    rotary = heads.rotary_frequencies if student.positions == "teacher" else None
    positions = "rotary" if rotary else anatomy.positions
    return GooseConfig(
        hidden_size=anatomy.width,
        num_hidden_layers=layers,
        intermediate_size=anatomy.feedforward_width,
        norm=anatomy.norm,
        norm_eps=anatomy.norm_eps,
        mlp=anatomy.mlp,
        mlp_bias=anatomy.mlp_bias,
        mixer=student.mixer,
        positions="none" if student.positions == "none" else positions,
        max_position_embeddings=anatomy.max_positions,
        num_attention_heads=heads.heads,
        num_key_value_heads=heads.key_value_heads,
        head_dim=heads.head_width,
        attention_bias=parts.query.bias is not None,
        attention_output_bias=parts.output.bias is not None,
        key_norm=parts.query_norm is not None,
        rotary_frequencies=None if rotary is None else list(rotary),
        rotary_scaling=heads.rotary_scaling,
        convolution=student.convolution,
        gate_rank=student.gate_rank,
        output_norm=student.output_norm,
        scan_backend=student.backend,
        tie_word_embeddings=anatomy.tie_head,
        **_common_fields(spikes, teacher),
    )


def student_config(student: WkvStudent, spikes: Spikes, teacher: Teacher) -> GooseConfig:
    """The transformers configuration of a student whose recipe states its shape."""
    return GooseConfig(
        hidden_size=student.width,
        num_hidden_layers=student.layers,
        intermediate_size=student.feedforward_width,
        norm=student.norm,
        mlp=student.mlp,
        mixer=student.mixer,
        positions=student.positions,
        max_position_embeddings=student.max_positions,
        decay_init=student.decay_init,
        mix_init=student.mix_init,
        recurrence=student.recurrence,
        scan_backend=student.backend,
        tie_word_embeddings=student.tie_head,
        **_common_fields(spikes, teacher),
    )


def _common_fields(spikes: Spikes, teacher: Teacher) -> dict[str, Any]:
    """What every student takes from its encoders' options and its teacher's vocabulary."""
    tokenizer, threshold = teacher.tokenizer, spikes.threshold
    limits = spikes.amplitude_range
    return {
        "vocab_size": teacher.vocabulary_size,
        "spikes": {
            "sites": spikes.sites,
            "encoder": spikes.encoder,
            "levels": spikes.levels,
            "alpha": spikes.threshold.alpha,
            "learn_alpha": isinstance(threshold, LearnedThreshold),
            "alpha_per": threshold.per if isinstance(threshold, LearnedThreshold) else "encoder",
            "scheduled_alpha": isinstance(threshold, ProgressiveThreshold),
            "channel_share": threshold.channel_share if isinstance(threshold, MixedThreshold) else 0.0,
            "amplitude": spikes.amplitude,
            "group_channels": spikes.group_channels,
            "amplitude_init": spikes.amplitude_init,
            "amplitude_range": None if limits is None else list(limits),
            "scale": spikes.scale,
            "store_alpha": spikes.calibrate and spikes.scale == "token",
            "store_recurrence_alpha": spikes.calibrate_recurrence,
            "surrogate": spikes.surrogate.model_dump(),
            "membrane": None if spikes.membrane is None else spikes.membrane.model_dump(),
        },
        "teacher_name": teacher.name,
        "vocabulary_hash": teacher.vocabulary_hash,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _with_own_head(student: GooseForCausalLM, spikes: Spikes) -> GooseForCausalLM:
    """The student, its head untied where factors may move into it: a resumed run builds what its checkpoint holds."""
    if spikes.migrate and "head_in" in student.model.encoders:
        untie_head(student)
    return student


def fresh_student(config: GooseConfig, seed: int) -> GooseForCausalLM:
    """A student with fresh weights, the same for the same seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = GooseForCausalLM(config)
    logger.info(
        "student: %s parameters, %.0f%% of its multiply-accumulates are fed by spikes",
        f"{student.num_parameters():,}",
        100 * spike_fed_mac_share(config),
    )
    return student
