"""Small students in float64, none of whose weights has the value it started with, and the tokens they read."""

from collections.abc import Callable

import pytest
import torch

from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM

VOCABULARY, WIDTH, LAYERS, POSITIONS = 97, 24, 3, 48

# Both norms, every feed-forward form, both position forms, and between them every option of the spike encoder.
FORMS = {
    "layernorm-silu-learned": {},
    "rmsnorm-swiglu-none": {
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "positions": "none",
        "spikes": {"levels": 3, "amplitude": "channel", "scale": "token", "learn_alpha": True},
    },
    "rmsnorm-gelu-learned-untied": {
        "norm": "rmsnorm",
        "mlp": "gelu",
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "spikes": {"amplitude": "none", "surrogate": {"kind": "recorded_ste"}},
    },
    "layernorm-silu-none-dense": {"positions": "none", "spikes": {"sites": []}},
    "goose-llama": {
        "mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "norm": "rmsnorm", "mlp": "swiglu", "positions": "rotary", "rotary_frequencies": [1.0, 0.3, 0.05],
        "key_norm": True, "tie_word_embeddings": False,
        "spikes": {"amplitude": "channel", "scale": "token", "learn_alpha": True},
    },
    "goose-gpt2": {
        "mixer": "goose", "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8,
        "mlp": "gelu", "mlp_bias": True, "attention_bias": True, "attention_output_bias": True,
        "spikes": {"amplitude": "none"},
    },
    "goose-bare": {
        "mixer": "goose", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "positions": "none", "convolution": 1, "gate_rank": 0, "spikes": {"sites": []},
    },
    "goose-llama-everywhere": {
        "mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "norm": "rmsnorm", "mlp": "swiglu", "positions": "rotary", "rotary_frequencies": [1.0, 0.3, 0.05],
        "spikes": {"sites": "all+head", "levels": 4, "amplitude": "channel", "scale": "token", "learn_alpha": True},
    },
    "goose-gpt2-everywhere": {
        "mixer": "goose", "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8,
        "mlp": "gelu", "mlp_bias": True, "attention_bias": True, "attention_output_bias": True,
        "spikes": {"sites": "all", "scale": "token"},
    },
    "goose-llama-membranes": {
        "mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "norm": "rmsnorm", "mlp": "swiglu", "positions": "rotary", "rotary_frequencies": [1.0, 0.3, 0.05],
        "spikes": {"sites": "all+head", "scale": "token", "membrane": {"beta": 0.9}},
    },
}  # fmt: skip


def build(**choices: object) -> GooseForCausalLM:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": POSITIONS,
        "scan_backend": "torch",
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        student = GooseForCausalLM(GooseConfig(**(shape | choices))).double().eval()
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return student


@pytest.fixture
def make_student() -> Callable[..., GooseForCausalLM]:
    """Builds a student with the given choices of `GooseConfig`."""
    return build


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def student(request: pytest.FixtureRequest) -> GooseForCausalLM:
    """A student of each form."""
    return build(**request.param)


@pytest.fixture
def plain_student() -> GooseForCausalLM:
    """A student of the default form."""
    return build()


@pytest.fixture
def ids() -> torch.Tensor:
    """Three rows of twenty tokens; token 0 is kept free for padding."""
    return torch.randint(1, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
