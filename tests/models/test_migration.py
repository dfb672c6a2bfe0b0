import pytest
import torch
from transformers import AutoModelForCausalLM

from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.models.build import build_student
from asnn_goose.models.calibration import calibrate_encoders, dense_encoders
from asnn_goose.models.folding import encoded_inputs
from asnn_goose.models.migration import EXPONENTS, best_migration, channel_factors, channel_weights, migrate_outliers
from asnn_goose.spikes.calibrate import GRID
from asnn_goose.spikes.encoder import SpikeEncoder

# Float64 rounding on logits of order 100; a factor left out anywhere would show as 1e-2 or more.
ROUNDING = {"rtol": 0.0, "atol": 1e-9}
GOOSE = {"mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
FORMS = {
    "swiglu-rmsnorm": {**GOOSE, "mlp": "swiglu", "norm": "rmsnorm", "key_norm": True, "tie_word_embeddings": False},
    "gelu-layernorm-biases-tied": {**GOOSE, "mlp": "gelu", "mlp_bias": True, "attention_bias": True},
    "wkv-swiglu": {"mlp": "swiglu", "mlp_bias": True},
}
SPIKES = {"sites": "all+head", "levels": 2, "amplitude": "none", "scale": "token", "store_alpha": True}


@torch.no_grad()
def uneven(make_student, form, **spikes):
    """A student some of whose channels are a hundred times as loud as others, at every site that can be equalized."""
    student = make_student(**FORMS[form], spikes={**SPIKES, **spikes})
    generator = torch.Generator().manual_seed(0)
    for weights in channel_weights(student).values():
        loudness = 10 ** (2 * torch.rand(len(weights[0]), generator=generator, dtype=torch.float64) - 1)
        for weight in weights:
            weight.mul_(loudness.view(-1, *[1] * (weight.ndim - 1)))
    return student


def state(student):
    return {name: weight.clone() for name, weight in student.state_dict().items()}


@torch.no_grad()
def reader_errors(student, ids):
    """Squared error of what each encoder's readers make of its spikes on the dense student's activations."""
    given = {}
    with dense_encoders(student, given.__setitem__):
        student(ids)
    return [
        sum(layer(given[encoder] - encoder(given[encoder]).dense()).sub(0 if layer.bias is None else layer.bias)
            .square().sum() for layer in readers)
        for encoder, readers in encoded_inputs(student)
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_the_dense_student_computes_what_it_did(make_student, form, ids):
    student = uneven(make_student, form)
    with dense_encoders(student):
        before, weights = student(ids).logits, state(student)
        migrate_outliers(student, ids)
        torch.testing.assert_close(student(ids).logits, before, **ROUNDING)
    moved = {name for name, weight in student.state_dict().items() if not torch.equal(weight, weights[name])}
    readers = {"rates", "gate_down", "gate_up"} if "goose" in str(FORMS[form]) else set[str]()
    assert readers | {"up", "lm_head", "norm"} <= {name.split(".")[-2] for name in moved}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [1, 4])
def test_what_readers_make_of_spikes_never_gets_worse(make_student, form, levels, ids):
    student = uneven(make_student, form, levels=levels)
    calibrate_encoders(student, ids)
    before = reader_errors(student, ids)
    migrate_outliers(student, ids)
    after = reader_errors(student, ids)
    assert all(now <= then * (1 + 1e-9) for now, then in zip(after, before, strict=True))
    assert sum(now < 0.9 * then for now, then in zip(after, before, strict=True)) > len(before) / 2


@torch.no_grad()
def test_a_loud_channel_that_is_read_softly_no_longer_makes_steps_coarse():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 32, generator=generator, dtype=torch.float64) for rows in (256, 48))
    x[:, 5] *= 100
    weight[:, 5] /= 10
    encoder = SpikeEncoder(32, 4, amplitude="none", scale="token", store_alpha=True).double()

    def error(factors, alpha):
        torch.nn.init.constant_(encoder.alpha, alpha)
        return ((x - factors * encoder(x / factors).dense()) @ weight.T).square().sum()

    before = min(error(torch.ones(32), alpha) for alpha in GRID)
    found = best_migration(encoder, x, [weight[:20], weight[20:]], torch.arange(256))
    # With one step for all, either this channel is cut off or the others are silent: a half is lost, equalized 3 %.
    assert error(*found) < 0.1 * before


def test_factors_equalize_what_loudness_and_reading_differ_in_and_make_the_mean_1():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator) * (torch.rand(8, generator=generator) + 0.1) * 40
    norms = torch.rand(8, generator=generator) + 0.1
    x[:, 3] = norms[4] = x[:, 5] = norms[5] = 0.0
    for exponent in (None, *EXPONENTS):
        factors = channel_factors(x, norms, exponent)
        assert (factors > 0).all()
        assert float((x / factors).abs().mean()) == pytest.approx(1.0, rel=1e-5)
        alike = channel_factors(x[:, :1].expand(-1, 8), torch.full((8,), 2.0), exponent)
        torch.testing.assert_close(alike, alike.mean().expand(8))
        assert torch.isfinite(channel_factors(torch.zeros(4, 8), torch.zeros(8), exponent)).all()
    louder = channel_factors(x[:, :3], torch.ones(3), 1.0)
    torch.testing.assert_close(
        louder / louder[0], x[:, :3].square().mean(dim=0).sqrt() / x[:, 0].square().mean().sqrt()
    )


def without_gate(student):
    for mixer in student.model.mixers():
        torch.nn.init.zeros_(mixer.gate_up.weight)


LEFT = {
    "key and value": ("swiglu-rmsnorm", {"sites": ["k", "v"]}),
    "without a scale": ("swiglu-rmsnorm", {"scale": "none", "store_alpha": False}),
    "behind a function": ("gelu-layernorm-biases-tied", {"sites": ["ffn_mid"]}),
    "behind a scan": ("wkv-swiglu", {"sites": ["mixer_out"]}),
    "read by zeros": ("swiglu-rmsnorm", {"sites": ["gate_mid"]}),
}


@pytest.mark.parametrize("case", LEFT)
def test_sites_that_cannot_move_or_that_nothing_weighs_stay_as_they_are(make_student, case, ids):
    form, spikes = LEFT[case]
    student = uneven(make_student, form, **spikes)
    if case == "read by zeros":
        without_gate(student)
    before = state(student)
    migrate_outliers(student, ids)
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    assert student.config.tie_word_embeddings == FORMS[form].get("tie_word_embeddings", True)


@torch.no_grad()
def test_a_tied_head_takes_the_factors_without_the_embedding(make_student, ids):
    student = uneven(make_student, "gelu-layernorm-biases-tied", sites=["head_in"])
    embedding, gain = student.model.embed_tokens.weight.clone(), student.model.norm.weight.clone()
    migrate_outliers(student, ids)
    assert torch.equal(student.model.embed_tokens.weight, embedding)
    assert not student.config.tie_word_embeddings
    torch.testing.assert_close(student.lm_head.weight, embedding * (gain / student.model.norm.weight))


@torch.no_grad()
def test_a_threshold_that_is_not_stored_stays(make_student, ids):
    student = uneven(make_student, "swiglu-rmsnorm", store_alpha=False)
    before, alphas = reader_errors(student, ids), [encoder.alpha for encoder, _ in encoded_inputs(student)]
    migrate_outliers(student, ids)
    assert [encoder.alpha for encoder, _ in encoded_inputs(student)] == alphas
    after = reader_errors(student, ids)
    assert all(now <= then * (1 + 1e-9) for now, then in zip(after, before, strict=True))
    assert sum(after) < sum(before)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_migrated_student_is_saved_and_loaded(make_student, form, ids, tmp_path):
    student = uneven(make_student, form)
    migrate_outliers(student, ids)
    student.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, student(ids).logits)


@torch.no_grad()
def test_a_converted_teacher_stays_itself_and_its_spikes_lose_less(teacher, real_text):
    spikes = Spikes(sites="all+head", levels=4, amplitude="none", scale="token", migrate=True)
    student = build_student(GooseStudent(mixer="goose"), spikes, teacher, 0).double()
    ids = torch.tensor(teacher.tokenizer(real_text[:4000]).input_ids[:256]).view(4, 64)
    calibrate_encoders(student, ids)
    before = reader_errors(student, ids)
    with dense_encoders(student):
        logits = student(ids).logits
        migrate_outliers(student, ids)
        torch.testing.assert_close(student(ids).logits, logits, **ROUNDING)
    after = reader_errors(student, ids)
    assert all(now <= then * (1 + 1e-9) for now, then in zip(after, before, strict=True))
    assert not torch.equal(student.lm_head.weight, student.model.embed_tokens.weight)
