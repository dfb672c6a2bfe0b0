"""Builds the student a recipe describes, for the vocabulary of its teacher."""

import logging

import torch

from asnn_goose.config import FixedThreshold, Spikes, WkvStudent
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.plan import spike_fed_mac_share
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import Teacher

logger = logging.getLogger(__name__)


def student_config(student: WkvStudent, spikes: Spikes, teacher: Teacher) -> GooseConfig:
    """The transformers configuration of a recipe's student."""
    tokenizer = teacher.tokenizer
    return GooseConfig(
        vocab_size=teacher.vocabulary_size,
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
        spikes={
            "sites": list(spikes.sites),
            "levels": spikes.levels,
            "alpha": spikes.threshold.alpha,
            "learn_alpha": not isinstance(spikes.threshold, FixedThreshold),
            "amplitude": spikes.amplitude,
            "scale": spikes.scale,
            "surrogate": spikes.surrogate.model_dump(),
        },
        teacher_name=teacher.name,
        vocabulary_hash=teacher.vocabulary_hash,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_student(config: GooseConfig, seed: int) -> GooseForCausalLM:
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
