"""Both models on a micro-batch, made up: what terms on hidden states look at."""

from collections.abc import Callable

import pytest
import torch

from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.objectives.terms import Seen


@pytest.fixture
def seen_by_terms() -> Callable[..., Seen]:
    """Makes a wkv student of three blocks in float64, its states on two rows, and a teacher's random ones."""

    def make(teacher_blocks: int = 4, width: int = 16, teacher_width: int = 16) -> Seen:
        torch.manual_seed(0)
        spikes = {"sites": ["k", "v"], "levels": 1, "alpha": 1.0, "learn_alpha": False, "amplitude": "scalar",
                  "scale": "none", "surrogate": {"kind": "recorded_ste"}}  # fmt: skip
        config = GooseConfig(
            vocab_size=29, hidden_size=width, num_hidden_layers=3, max_position_embeddings=32, spikes=spikes,
            scan_backend="torch",
        )  # fmt: skip
        student = GooseForCausalLM(config).double()
        for mixer in student.model.mixers():
            for encoder in mixer.encoders.values():
                encoder.shows_spikes = True
        ids = torch.randint(0, 29, (2, 7), generator=torch.Generator().manual_seed(0))
        found = student.model(input_ids=ids, output_hidden_states=True)
        states = torch.randn(teacher_blocks + 2, 2, 7, teacher_width, dtype=torch.float64)
        return Seen(student, found, dict(enumerate(states[:-1])), states[-1])

    return make
