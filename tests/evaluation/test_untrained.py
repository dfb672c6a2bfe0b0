import math

import pytest
import torch

from asnn_goose.evaluation.observe import encoders_by_place
from asnn_goose.evaluation.untrained import untrained_student
from asnn_goose.models.build import build_student
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.presets import load_recipe


@pytest.fixture(scope="module")
def student(teacher) -> GooseForCausalLM:
    """A student that took over the pocket teacher's weights, with thresholds as if they had been learned."""
    recipe = load_recipe("convert-pocket-spiking", ["spikes.amplitude=channel"])
    made = build_student(recipe.student, recipe.spikes, teacher, 0)
    with torch.no_grad():
        for number, encoder in enumerate(encoders_by_place(made).values()):
            encoder.alpha.fill_(0.5 + 0.01 * number)
            encoder.amplitude.fill_(1.5)
    return made


def test_it_has_the_students_shape_dtype_and_thresholds_and_none_of_its_other_weights(student):
    trained, made = student.state_dict(), untrained_student(student, 0).state_dict()
    assert {name: (w.shape, w.dtype) for name, w in made.items()} == {
        name: (w.shape, w.dtype) for name, w in trained.items()
    }
    assert all(torch.equal(made[name], trained[name]) for name in trained if name.endswith(".alpha"))
    projections = [
        name for name in trained if name.endswith(("embed_tokens.weight", "key.weight", "forward.up.weight"))
    ]
    assert len(projections) == 9
    assert not any(torch.allclose(made[name], trained[name], atol=1e-3) for name in projections)
    assert all(torch.equal(made[name], torch.ones_like(w)) for name, w in trained.items() if name.endswith("amplitude"))


def test_the_same_seed_makes_the_same_weights_and_another_makes_others(student):
    first, again, other = (untrained_student(student, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_neither_the_student_nor_the_global_generator_is_touched(student):
    before, state = {name: w.clone() for name, w in student.state_dict().items()}, torch.get_rng_state()
    made = untrained_student(student, 0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.zero_()
    made.config.spikes["levels"] = 5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    assert student.config.spikes["levels"] == 1


def test_it_knows_nothing_of_the_text(student, teacher, real_text):
    """Random weights spread their guesses over the whole vocabulary; the teacher does not."""
    ids = torch.tensor(teacher.tokenizer(real_text[:4000])["input_ids"][:512]).view(4, 128)
    made = untrained_student(student, 0)
    assert not made.training
    with torch.no_grad():
        assert math.exp(made(ids, labels=ids).loss) == pytest.approx(teacher.vocabulary_size, rel=0.2)
        assert math.exp(teacher.model(ids, labels=ids).loss) < teacher.vocabulary_size / 50


def test_it_has_the_number_type_of_the_student(student):
    made = untrained_student(untrained_student(student, 0).double(), 0)
    assert {weight.dtype for weight in made.parameters()} == {torch.float64}
