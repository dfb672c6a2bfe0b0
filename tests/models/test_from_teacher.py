import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from asnn_goose.config_student import GooseStudent, Spikes, WkvStudent
from asnn_goose.errors import ConfigError
from asnn_goose.models.anatomy import teacher_anatomy
from asnn_goose.models.build import build_student, fresh_student
from asnn_goose.models.compiling import CompiledForm
from asnn_goose.models.from_teacher import kept_layers
from asnn_goose.models.mixers import MixerOutput
from asnn_goose.models.teacher import Teacher, output_head

LAYERS, WIDTH, INNER, VOCABULARY = 3, 24, 40, 61
SHAPE = {
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_inner=INNER)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, mlp_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
}


def randomized(model):
    """The model in float64, none of its weights as it was initialized."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval().requires_grad_(False)


@pytest.fixture(params=list(MODELS))
def source(request, teacher):
    """A small teacher of each family, with the pocket teacher's tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomized(MODELS[request.param]())
    body = CompiledForm(model.base_model, None, "teacher")
    return Teacher(model, body, output_head(model, request.param), teacher.tokenizer, request.param, "")


def fitting(source, **changes):
    """A student of the teacher's shape."""
    parts = teacher_anatomy(source.model, source.name)
    shape = {
        "width": parts.width, "layers": len(parts.blocks), "feedforward_width": parts.feedforward_width,
        "norm": parts.norm, "mlp": parts.mlp, "positions": parts.positions, "max_positions": 32,
        "tie_head": parts.tie_head,
    }  # fmt: skip
    return WkvStudent(initialization="teacher", **{**shape, **changes})


def replace_mixers(student, outputs):
    """Make each block's mixer say what is given."""
    for block, output in zip(student.model.layers, outputs, strict=True):
        memory = block.mixer.initial_memory(output)
        block.mixer.forward = lambda *given, output=output, memory=memory: MixerOutput(output, memory, {})


@pytest.mark.parametrize("form", ["wkv", "goose"])
def test_with_the_teachers_attention_in_the_mixers_place_the_logits_are_the_teachers(source, form):
    said = []
    for block in teacher_anatomy(source.model, source.name).blocks:
        block.attention.register_forward_hook(lambda module, given, output: said.append(output[0]))
    ids = torch.randint(0, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(2))
    expected = source.model(input_ids=ids, use_cache=False).logits
    description = fitting(source) if form == "wkv" else GooseStudent(mixer="goose")
    student = build_student(description, Spikes(amplitude="none"), source, seed=0).double()
    replace_mixers(student, said)
    # Llama's norms compute in float32 whatever they are given.
    tolerance = 1e-10 if source.name == "gpt2" else 1e-5
    assert torch.allclose(student(input_ids=ids).logits, expected, rtol=0, atol=tolerance)


def test_a_goose_student_projects_as_the_teachers_attention_does(source):
    student = build_student(GooseStudent(mixer="goose"), Spikes(amplitude="none"), source, seed=0).double()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for block, kept in zip(source.model.base_model.h if source.name == "gpt2" else source.model.base_model.layers,
                           student.model.layers, strict=True):  # fmt: skip
        if source.name == "gpt2":
            query, key, value = block.attn.c_attn(x).chunk(3, dim=-1)
            output = block.attn.c_proj
        else:
            query, key, value = (getattr(block.self_attn, f"{role}_proj")(x) for role in "qkv")
            output = block.self_attn.o_proj
        mixer = kept.mixer
        for found, expected in ((mixer.receptance(x), query), (mixer.key(x), key), (mixer.value(x), value)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        read = torch.randn(2, 5, mixer.shape.read_width, dtype=torch.float64)
        torch.testing.assert_close(mixer.output(read), output(read), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["wkv", "goose"])
def test_a_student_is_tied_as_its_teacher_is_and_takes_an_untied_head(source, form):
    description = fitting(source) if form == "wkv" else GooseStudent(mixer="goose")
    student = build_student(description, Spikes(amplitude="none"), source, seed=0)
    untied = source.name in ("llama", "mistral", "qwen2", "qwen3")
    assert student.config.tie_word_embeddings is not untied
    assert (student.lm_head.weight is student.model.embed_tokens.weight) is not untied
    assert torch.equal(student.lm_head.weight, source.head.weight.float())
    assert torch.equal(student.model.embed_tokens.weight, source.model.get_input_embeddings().weight.float())


def test_a_random_goose_student_keeps_the_shape_alone(source):
    taken = build_student(GooseStudent(mixer="goose"), Spikes(amplitude="none"), source, seed=0)
    drawn = build_student(
        GooseStudent(mixer="goose", initialization="random"), Spikes(amplitude="none"), source, seed=0
    )
    shapes = [{name: weight.shape for name, weight in student.state_dict().items()} for student in (taken, drawn)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(taken.model.embed_tokens.weight, drawn.model.embed_tokens.weight)


def test_the_mixers_stay_as_they_were_drawn(source):
    student = build_student(fitting(source), Spikes(), source, seed=3)
    copied, drawn = student.state_dict(), fresh_student(student.config, seed=3).state_dict()
    mixers = [name for name in copied if ".mixer." in name]
    assert mixers
    assert all(torch.equal(copied[name], drawn[name]) for name in mixers)
    assert not torch.equal(copied["model.embed_tokens.weight"], drawn["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("choice", "of", "kept"),
    [
        ("all", 4, [0, 1, 2, 3]), ("every_other", 5, [0, 2, 4]), (4, 4, [0, 1, 2, 3]), (2, 4, [0, 3]),
        (3, 12, [0, 6, 11]), (1, 5, [0]), ((1, 3), 4, [1, 3]),
    ],
)  # fmt: skip
def test_kept_layers(choice, of, kept):
    assert kept_layers(choice, of) == kept


@pytest.mark.parametrize("choice", [5, (), (0, 4), (-1, 2), (2, 1), (1, 1)])
def test_layers_that_the_teacher_has_not_are_refused(choice):
    with pytest.raises(ConfigError, match=r"student\.keep_layers="):
        kept_layers(choice, 4)


def test_a_smaller_student_takes_first_and_last(source):
    student = build_student(fitting(source, layers=2), Spikes(), source, seed=0)
    blocks = teacher_anatomy(source.model, source.name).blocks
    for block, index in zip(student.model.layers, (0, 2), strict=True):
        assert torch.equal(block.feed_forward_norm.weight, blocks[index].feed_forward_norm.weight.float())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 32}, f"student.width={WIDTH}"),
        ({"feedforward_width": None}, f"student.feedforward_width={INNER}"),
        ({"layers": 4}, "student.layers=3 (or fewer)"),
        ({"mlp": "silu"}, "student.mlp="),
    ],
)
def test_a_shape_that_is_not_the_teachers_is_refused_with_what_to_give(source, changes, told):
    with pytest.raises(ConfigError) as caught:
        build_student(fitting(source, **changes), Spikes(), source, seed=0)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
