import threading
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from asnn_goose.errors import TeacherError
from asnn_goose.evaluation.observe import (
    at_rest,
    default_batch_rows,
    encoders_by_place,
    has_spikes,
    observations,
    observe,
    observe_beside,
    observe_teacher,
    passes,
)
from asnn_goose.models.anatomy import teacher_anatomy
from asnn_goose.models.build import build_student
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.cpu_linear import onednn_linears
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.presets import load_recipe
from asnn_goose.spikes import encoder
from asnn_goose.spikes.surrogate import staircase

# Float64 rounding, some hundred operations deep, on numbers of order 10; a spike that flips would show as 1e-2 or more.
ROUNDING = {"rtol": 0.0, "atol": 1e-11}
# Float32 sums of 256 magnitudes in two orders.
SUMMATION = {"rtol": 1e-5, "atol": 1e-6}
GOOSE = {
    "mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "norm": "rmsnorm",
    "mlp": "swiglu", "positions": "rotary", "rotary_frequencies": [1.0, 0.3, 0.05],
}  # fmt: skip
ENCODERS = {
    "recorded": {"surrogate": {"kind": "recorded_ste"}},
    "levels": {"levels": 4, "scale": "token", "learn_alpha": True, "alpha": 0.6},
    "binary": {"encoder": "binary", "levels": 2, "alpha": 0.5},
    "quantized": {"encoder": "quantized", "levels": 3, "scale": "token"},
    "channel-thresholds": {"learn_alpha": True, "alpha_per": "channel"},
    "running-means": {"channel_share": 0.35, "levels": 2, "alpha": 0.6},
    "membrane": {"levels": 2, "scale": "token", "membrane": {"beta": 0.9}},
    "binary-membrane": {"encoder": "binary", "alpha": 0.5, "membrane": {"beta": 0.6}},
}
# Thresholds that learn are torch's own work, those that do not the compiled kernel's.
CONVERTED = {
    "torch": [],
    "compiled": ["spikes.threshold.kind=fixed", "spikes.migrate=false", "spikes.levels=2"],
    "compiled-unit": ["spikes.threshold.kind=fixed", "spikes.migrate=false", "spikes.levels=2", "spikes.scale=none"],
}


def small(form: str = "goose", **choices: object) -> GooseForCausalLM:
    """A student in float64, none of whose weights has the value it started with."""
    shape = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 48}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = GooseConfig(**shape, scan_backend="torch", **(GOOSE if form == "goose" else {}), **choices)
        student = GooseForCausalLM(config).double().eval()
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return student


@pytest.fixture(params=[(form, name) for form in ("goose", "wkv") for name in ENCODERS], ids="-".join)
def student(request):
    form, encoder = request.param
    return small(form, spikes={"sites": "all+head", **ENCODERS[encoder]})


@pytest.fixture
def ids():
    return torch.randint(1, 97, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CONVERTED.values(), ids=CONVERTED.keys())
def converted(request, teacher):
    """The pocket teacher with spikes at every site."""
    recipe = load_recipe("convert-pocket-spiking", ["spikes.sites=all+head", *request.param])
    return build_student(recipe.student, recipe.spikes, teacher, 0).eval()


@pytest.fixture
def llama(teacher):
    """A teacher of the other family, untrained."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return replace(teacher, model=LlamaForCausalLM(config).eval())


def given_to_encoders(student, ids):
    """What each encoder is given in a pass, by its place."""
    seen: dict[tuple[int, str], torch.Tensor] = {}
    hooks = [
        encoder.register_forward_pre_hook(lambda _, given, place=place: seen.update({place: given[0]}))
        for place, encoder in encoders_by_place(student).items()
    ]
    with torch.no_grad(), onednn_linears(student):
        student(ids)
    for hook in hooks:
        hook.remove()
    return seen


def hooks_of(*models):
    modules = [module for model in models for module in model.modules()]
    return [hook for module in modules for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_spikes_are_the_staircase_of_preactivations_for_every_encoder(student, teacher, ids):
    sites = observe(student, teacher, ids).sites
    assert set(sites) == set(encoders_by_place(student))
    assert (2, "head_in") in sites
    for place, seen in sites.items():
        made_by = encoders_by_place(student)[place]
        assert torch.equal(staircase(seen.preactivations, made_by.levels, made_by.signed), seen.spikes)
        assert seen.spikes.count_nonzero() > 0


def test_spikes_are_the_staircase_of_preactivations_in_float32_to_the_last_value(converted, teacher):
    """A million values each: rounding that differs between two forms of an encoder would show."""
    ids = torch.randint(0, teacher.vocabulary_size, (8, 128), generator=torch.Generator().manual_seed(0))
    for place, seen in observe(converted, teacher, ids).sites.items():
        levels = encoders_by_place(converted)[place].levels
        assert torch.equal(staircase(seen.preactivations, levels), seen.spikes), place


def test_preactivations_are_activations_over_twice_the_threshold(converted, teacher):
    ids = torch.randint(0, teacher.vocabulary_size, (2, 64), generator=torch.Generator().manual_seed(0))
    sites = observe(converted, teacher, ids).sites
    for place, x in given_to_encoders(converted, ids).items():
        alpha = torch.as_tensor(encoders_by_place(converted)[place].alpha).detach()
        step = 2 * (alpha * x.double().abs().mean(dim=-1, keepdim=True)).clamp(0.01, 10)
        torch.testing.assert_close(sites[place].preactivations.double(), x.double() / step, **SUMMATION)


def test_where_a_compiled_encoder_rounds_otherwise_preactivations_are_on_its_side(teacher, monkeypatch):
    """A kernel that is wrong by a thousandth decides otherwise at thousands of borders; others do by a last bit."""
    recipe = load_recipe("convert-pocket-spiking", CONVERTED["compiled"])
    student = build_student(recipe.student, recipe.spikes, teacher, 0).eval()

    def rough(x, alpha, bounds, levels, *_):
        step = 2 * (alpha * x.abs().mean(dim=-1, keepdim=True)).clamp(*bounds)
        return staircase(x / step * 1.001, levels), step

    monkeypatch.setattr(encoder, "_numba_encoder", lambda: rough)
    ids = torch.randint(0, teacher.vocabulary_size, (2, 64), generator=torch.Generator().manual_seed(0))
    sites, given = observe(student, teacher, ids).sites, given_to_encoders(student, ids)
    moved = 0
    for place, seen in sites.items():
        assert torch.equal(staircase(seen.preactivations, 2), seen.spikes)
        z = given[place] / (2 * given[place].abs().mean(dim=-1, keepdim=True).clamp(0.01, 10))
        torch.testing.assert_close(seen.preactivations, z, rtol=2e-3, atol=1e-6)
        moved += (staircase(z, 2) != seen.spikes).sum()
    assert moved > 100


def test_with_a_membrane_preactivations_are_the_potentials_it_fires_at(teacher, ids):
    student = small(spikes={"sites": ["ffn_in"], "levels": 2, "scale": "token", "membrane": {"beta": 0.9}})
    seen, x = observe(student, teacher, ids).sites[1, "ffn_in"], given_to_encoders(student, ids)[1, "ffn_in"]
    z = x / (2 * x.abs().mean(dim=-1, keepdim=True).clamp(0.01, 10))
    left = torch.zeros_like(z[:, 0])
    for time in range(z.shape[1]):
        potential = 0.9 * left + z[:, time]
        torch.testing.assert_close(seen.preactivations[:, time], potential, **ROUNDING)
        left = potential - seen.spikes[:, time]


def test_observing_changes_no_output(converted, teacher):
    ids = torch.randint(0, teacher.vocabulary_size, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, taught = converted(ids).logits, teacher.model(ids).logits
        seen = observe(converted, teacher, ids)
        assert torch.equal(converted(ids).logits, before)
        assert torch.equal(teacher.model(ids).logits, taught)
        normed = converted.model.norm(seen.block_outputs[-1])
        hidden = converted.model.encoders["head_in"](normed).dense()
        torch.testing.assert_close(converted.lm_head(hidden), before, rtol=1e-4, atol=1e-4)
        spikes = converted(ids, output_spikes=True).spikes
    assert all(torch.equal(spikes[block][site], found.spikes) for (block, site), found in seen.sites.items())


@pytest.mark.parametrize("form", ["goose", "wkv"])
def test_the_last_block_output_makes_the_logits(form, teacher, ids):
    student = small(form, spikes={"sites": "recorded"})
    outputs = observe(student, teacher, ids).block_outputs
    assert len(outputs) == 2
    with torch.no_grad():
        torch.testing.assert_close(student.lm_head(student.model.norm(outputs[-1])), student(ids).logits, **ROUNDING)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_teachers_stream_starts_before_its_first_block_and_ends_before_the_final_norm(family, teacher, llama, ids):
    taught = teacher if family == "gpt2" else llama
    anatomy = teacher_anatomy(taught.model, family)
    with torch.no_grad():
        hidden = observe(small(spikes={"sites": []}), taught, ids).teacher_hidden
        truth = taught.model(ids, output_hidden_states=True)
        assert len(hidden) == len(anatomy.blocks) + 1
        torch.testing.assert_close(hidden[:-1], truth.hidden_states[:-1])
        torch.testing.assert_close(anatomy.head(anatomy.final_norm(hidden[-1])), truth.logits)


def test_the_state_of_wkv_is_the_decaying_sum_of_what_its_spikes_stand_for(teacher, ids):
    student = small("wkv", spikes={"sites": "recorded"})
    seen = observe(student, teacher, ids)
    encoders, decay = encoders_by_place(student), torch.sigmoid(student.model.layers[1].mixer.decay_logit)
    key, value = (seen.sites[1, site].spikes * encoders[1, site].amplitude for site in ("k", "v"))
    state = torch.zeros_like(key[:, 0])
    for time in range(ids.shape[1]):
        state = decay * state + key[:, time] * value[:, time]
        torch.testing.assert_close(seen.states[1][:, time], state, **ROUNDING)


def test_the_state_of_goose_is_what_its_mixer_reads_of_what_it_is_given(teacher, ids):
    student, given = small(spikes={"sites": "all"}), {}
    for block, mixer in enumerate(student.model.mixers()):
        mixer.register_forward_pre_hook(lambda _, args, block=block: given.update({block: args[0]}))
    seen = observe(student, teacher, ids)
    with torch.no_grad():
        for block, mixer in enumerate(student.model.mixers()):
            torch.testing.assert_close(seen.states[block], mixer.read(given[block]), **ROUNDING)


def test_students_stand_beside_a_teacher_that_has_read_once(teacher, ids):
    student = small(spikes={"sites": "recorded"})
    hidden = observe_teacher(teacher, ids)
    beside, together = observe_beside(student, hidden, ids), observe(student, teacher, ids)
    assert beside.teacher_hidden is hidden
    assert all(torch.equal(one, other) for one, other in zip(hidden, together.teacher_hidden, strict=True))
    assert all(torch.equal(state, together.states[block]) for block, state in beside.states.items())
    assert set(beside.sites) == set(together.sites)


@pytest.mark.parametrize(("form", "gain"), [("goose", "head_norm"), ("wkv", None)])
def test_what_the_output_projection_is_given_is_the_state_times_its_gain(form, gain, teacher, ids):
    """Without a gate nothing else stands between them."""
    student = small(form, gate_rank=0, spikes={"sites": ["k", "v", "mixer_out"], "scale": "token"})
    seen, given = observe(student, teacher, ids), given_to_encoders(student, ids)
    assert set(seen.states) == {0, 1}
    for block, mixer in enumerate(student.model.mixers()):
        expected = seen.states[block] * (1.0 if gain is None else mixer.head_norm.detach())
        torch.testing.assert_close(given[block, "mixer_out"], expected, **ROUNDING)


def test_a_batch_of_rows_is_its_rows_one_by_one(student, teacher, ids):
    together, alone = observe(student, teacher, ids), list(observations(student, teacher, ids, 1))
    for row, single in enumerate(alone):
        assert single.rows == 1
        for place, seen in together.sites.items():
            assert torch.equal(seen.spikes[row], single.sites[place].spikes[0])
            torch.testing.assert_close(seen.preactivations[row], single.sites[place].preactivations[0], **ROUNDING)
        for block, state in together.states.items():
            torch.testing.assert_close(state[row], single.states[block][0], **ROUNDING)
        outputs = zip(together.block_outputs, single.block_outputs, strict=True)
        assert all(torch.allclose(whole[row], part[0], **ROUNDING) for whole, part in outputs)


def test_the_last_batch_holds_what_is_left(teacher, ids):
    seen = list(observations(small(spikes={"sites": []}), teacher, ids, 2))
    assert [batch.rows for batch in seen] == [2, 1]


@pytest.mark.parametrize("form", ["goose", "wkv"])
def test_a_dense_student_has_streams_and_states_but_no_spikes(form, teacher, ids):
    student = small(form, spikes={"sites": []})
    seen = observe(student, teacher, ids)
    assert not has_spikes(student)
    assert (dict(seen.sites), set(seen.states), len(seen.block_outputs)) == ({}, {0, 1}, 2)
    assert has_spikes(small(form))


def test_no_hook_stays_and_every_module_keeps_its_mode(teacher, ids):
    student = small(spikes={"sites": "all"}).train()
    student.model.norm.eval()
    before = hooks_of(student, teacher.model)
    observe(student, teacher, ids)
    with pytest.raises(IndexError):
        observe(student, teacher, ids + 97)
    assert hooks_of(student, teacher.model) == before
    assert not any("recall" in vars(mixer) for mixer in student.model.mixers())
    assert student.training
    assert not student.model.norm.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("layer", "at_once"), [("omp", True), ("tbb", True), ("workqueue", False), (None, False)])
def test_passes_run_at_once_where_numbas_threads_are_known_to_let_them(layer, at_once, monkeypatch):
    runtime = pytest.importorskip("asnn_goose.kernels.numba_runtime", reason="install the cpu extra to have numba")

    def threading_layer():
        if layer is None:
            raise ValueError("Threading layer is not initialized.")
        return layer

    monkeypatch.setattr(runtime.numba, "threading_layer", threading_layer)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = passes([threading.get_ident, threading.get_ident], torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert (threading.get_ident() not in threads) == at_once


def test_at_rest_nothing_trains_or_takes_gradients():
    student = small().train()
    with at_rest(student):
        assert not any(module.training for module in student.modules())
        assert not torch.is_grad_enabled()
    assert all(module.training for module in student.modules())


def test_a_teacher_whose_blocks_are_not_known_is_refused(teacher, ids):
    config = OPTConfig(vocab_size=97, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2)
    other = replace(teacher, model=OPTForCausalLM(config), name="other")
    with pytest.raises(TeacherError, match="other is a opt model"):
        observe(small(), other, ids)


@pytest.mark.parametrize(("window", "rows", "of_two"), [(2**18, 8, 8), (2**20, 5, 2), (2**22, 1, 1)])
def test_as_many_rows_are_looked_at_together_as_memory_holds(window, rows, of_two):
    student = small(spikes={"sites": "recorded"})
    # Two blocks, k and v of each: 48 channels, spikes and pre-activations.
    assert default_batch_rows(student, window) == rows
    assert default_batch_rows(student, window, students=2) == of_two
