import inspect
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from asnn_goose.errors import VocabularyMismatchError
from asnn_goose.kernels.divergences import Divergence
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_loss import cross_entropy_sums, distillation_sums

# Two orders of summation over 37 words and 13 tokens, relative to the tensor's largest entry.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# bfloat16 keeps 8 bits of each factor of a matrix product.
BFLOAT16_TOLERANCE = 2e-2
TOKENS, VOCABULARY = 13, 37
OPTIONS = [
    {"temperature": t, "divergence_weight": kl, "cross_entropy_weight": ce, "chunk_tokens": chunk}
    for t, (kl, ce), chunk in itertools.product((1.0, 2.5), ((1.0, 0.0), (0.7, 0.3), (0.0, 1.0)), (1, 5, 64))
]


def make_problem(dtype: torch.dtype) -> dict[str, Tensor]:
    """Two models' hidden states, heads and biases; a third of the labels and of the tokens are left out."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden": (TOKENS, 7), "weight": (VOCABULARY, 7), "bias": (VOCABULARY,)}
    shapes |= {"teacher": (TOKENS, 9), "teacher_weight": (VOCABULARY, 9), "teacher_bias": (VOCABULARY,)}
    problem = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    problem = {name: tensor.to(dtype) for name, tensor in problem.items()}
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[::3] = -100
    return problem | {"labels": labels, "valid": torch.arange(TOKENS) % 3 != 1}


def dense_sums(
    problem: dict[str, Tensor], temperature: float, divergence_weight: float, cross_entropy_weight: float, **_: int
):
    """The definition, all logits at once."""
    logits = problem["hidden"] @ problem["weight"].T + problem["bias"]
    teacher = (problem["teacher"] @ problem["teacher_weight"].T + problem["teacher_bias"]) / temperature
    ratio = teacher.log_softmax(-1) - (logits / temperature).log_softmax(-1)
    kl = (teacher.softmax(-1) * ratio).sum(-1)[problem["valid"]].sum()
    cross_entropy = F.cross_entropy(logits, problem["labels"], ignore_index=-100, reduction="sum")
    return divergence_weight * temperature**2 * kl + cross_entropy_weight * cross_entropy, kl, cross_entropy


def chunked_sums(problem: dict[str, Tensor], **options: Any):
    head = LinearHead(problem["weight"], problem["bias"])
    teacher_head = LinearHead(problem["teacher_weight"], problem["teacher_bias"])
    students = problem["hidden"], head, problem["teacher"], teacher_head
    sums = distillation_sums(*students, problem["labels"], problem["valid"], **options)
    return sums.loss, sums.divergence_nats, sums.cross_entropy_nats


def every_divergence(log_p: Tensor, log_q: Tensor, kind: str, share: float) -> Tensor:
    """One number a token, by the definitions, for probabilities that are all above 0."""
    p, q = log_p.exp(), log_q.exp()
    mixture = share * p + (1 - share) * q
    match kind:
        case "forward_kl":
            return (p * (p / q).log()).sum(-1)
        case "reverse_kl":
            return (q * (q / p).log()).sum(-1)
        case "jsd":
            return (share * p * (p / mixture).log() + (1 - share) * q * (q / mixture).log()).sum(-1)
        case "skew_kl":
            return (p * (p / mixture).log()).sum(-1)
        case _:
            return 0.5 * (p - q).abs().sum(-1)


def with_gradients(sums, problem: dict[str, Tensor], options: dict[str, float]) -> list[Tensor]:
    """The three sums and the gradients of 3 times the loss."""
    leaves = {name: problem[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")}
    values = sums(problem | leaves, **options)
    return [value.detach() for value in values] + list(torch.autograd.grad(3 * values[0], list(leaves.values())))


def assert_close(found: Tensor, truth: Tensor, tolerance: float) -> None:
    assert float((found.double() - truth).abs().max()) <= tolerance * max(1.0, float(truth.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sums_and_all_gradients_equal_the_dense_float64_loss(options, dtype) -> None:
    expected = with_gradients(dense_sums, make_problem(torch.float64), options)
    found = with_gradients(chunked_sums, make_problem(dtype), options)
    if options["divergence_weight"] == 0:
        expected[1] = torch.zeros(())
    for value, truth in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert_close(value, truth, TOLERANCE[dtype])


def test_tokens_that_are_neither_valid_nor_labeled_are_not_read() -> None:
    problem, poisoned = make_problem(torch.float64), make_problem(torch.float64)
    problem["valid"][0] = poisoned["valid"][0] = False
    unread = (problem["labels"] == -100) & ~problem["valid"]
    poisoned["hidden"][unread], poisoned["teacher"][unread] = torch.nan, torch.inf
    found = with_gradients(chunked_sums, poisoned, OPTIONS[4])
    expected = with_gradients(chunked_sums, problem, OPTIONS[4])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[3][unread].any()


def test_a_tied_head_gets_the_gradient_of_both_uses() -> None:
    gradients = []
    for sums in (dense_sums, chunked_sums):
        problem = make_problem(torch.float64)
        weight = problem["weight"].requires_grad_()
        embedded = weight[torch.arange(TOKENS) * 2]
        gradients.append(torch.autograd.grad(sums(problem | {"hidden": embedded}, **OPTIONS[4])[0], weight)[0])
    assert_close(gradients[1], gradients[0], TOLERANCE[torch.float64])


def test_without_gradient_the_sums_are_the_same() -> None:
    problem = make_problem(torch.float64)
    expected = with_gradients(chunked_sums, problem, OPTIONS[4])[:3]
    with torch.no_grad():
        found = chunked_sums(problem | {"hidden": problem["hidden"].requires_grad_()}, **OPTIONS[4])
    assert not found[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_reported_sums_are_detached() -> None:
    problem = make_problem(torch.float32)
    loss, kl, cross_entropy = chunked_sums(problem | {"hidden": problem["hidden"].requires_grad_()}, **OPTIONS[4])
    assert loss.requires_grad
    assert not kl.requires_grad
    assert not cross_entropy.requires_grad


def test_bfloat16_products_keep_float32_sums_and_the_inputs_gradient_dtype() -> None:
    expected = with_gradients(dense_sums, make_problem(torch.float64), OPTIONS[4])
    options = OPTIONS[4] | {"matmul_dtype": torch.bfloat16}
    for value, truth in zip(with_gradients(chunked_sums, make_problem(torch.float32), options), expected, strict=True):
        assert value.dtype == torch.float32
        assert_close(value, truth, BFLOAT16_TOLERANCE)


def test_autocast_changes_nothing() -> None:
    problem = make_problem(torch.float32)
    expected = with_gradients(chunked_sums, problem, OPTIONS[4])
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(chunked_sums, problem, OPTIONS[4])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_loss_of_cross_entropy_alone_needs_no_teacher() -> None:
    problem = make_problem(torch.float64)
    head = LinearHead(problem["weight"], problem["bias"])
    sums = distillation_sums(problem["hidden"], head, None, None, problem["labels"], problem["valid"], 1.0, 0.0, 1.0, 5)
    assert_close(sums.loss, dense_sums(problem, 1.0, 0.0, 1.0)[2], TOLERANCE[torch.float64])


def test_token_cross_entropies_are_the_dense_ones_and_zero_where_unlabeled() -> None:
    problem = make_problem(torch.float64)
    logits = problem["hidden"] @ problem["weight"].T + problem["bias"]
    expected = F.cross_entropy(logits, problem["labels"], ignore_index=-100, reduction="none")
    head = LinearHead(problem["weight"], problem["bias"])
    found = cross_entropy_sums(problem["hidden"], head, problem["labels"], chunk_tokens=5)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[torch.float64])


def test_different_vocabularies_are_refused() -> None:
    problem = make_problem(torch.float32)
    smaller = {"teacher_weight": problem["teacher_weight"][1:], "teacher_bias": problem["teacher_bias"][1:]}
    with pytest.raises(VocabularyMismatchError, match="36 tokens, the student's 37"):
        chunked_sums(problem | smaller, **OPTIONS[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"divergence_weight": -1.0}, "weights"),
    ],
)
def test_meaningless_numbers_are_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_sums(make_problem(torch.float32), **(OPTIONS[0] | wrong))


def test_tensors_of_different_token_counts_are_refused() -> None:
    problem = make_problem(torch.float32)
    heads = LinearHead(problem["weight"]), LinearHead(problem["teacher_weight"])
    states = problem["hidden"], heads[0], problem["teacher"], heads[1]
    # Unwrapped, because the shape types of a test run would refuse first.
    with pytest.raises(ValueError, match="labels must have one entry for each of 13 tokens, got 12"):
        inspect.unwrap(distillation_sums)(*states, problem["labels"][1:], problem["valid"], 1.0, 1.0, 0.0, 5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("learns", [False, True], ids=["given", "learned"])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "total_variation"])
def test_any_divergence_and_its_temperature_have_the_dense_losss_gradients(kind, learns, backend, kernel_device):
    names = ("hidden", "weight", "bias", *(["temperature"] if learns else []))
    results = []
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, kernel_device if backend == "triton" else "cpu")):
        problem = {name: tensor.to(device) for name, tensor in make_problem(dtype).items()}
        problem["temperature"] = torch.tensor(1.7, dtype=dtype, device=device)
        leaves = {name: problem[name].clone().requires_grad_() for name in names}
        problem |= leaves
        heat, head = problem["temperature"], LinearHead(problem["weight"], problem["bias"])
        if dtype == torch.float64:
            logits = problem["hidden"] @ problem["weight"].T + problem["bias"]
            teacher = problem["teacher"] @ problem["teacher_weight"].T + problem["teacher_bias"]
            value = every_divergence((teacher / heat).log_softmax(-1), (logits / heat).log_softmax(-1), kind, 0.3)
            power = 1 if kind == "total_variation" else 2
            labels = F.cross_entropy(logits, problem["labels"], ignore_index=-100, reduction="sum")
            loss = 0.7 * heat**power * value[problem["valid"]].sum() + 0.3 * labels
        else:
            loss = distillation_sums(
                problem["hidden"], head, problem["teacher"],
                LinearHead(problem["teacher_weight"], problem["teacher_bias"]), problem["labels"], problem["valid"],
                heat if learns else 1.7, 0.7, 0.3, chunk_tokens=5, divergence=Divergence(kind, 0.3), backend=backend,
            ).loss  # fmt: skip
        results.append([loss.detach(), *torch.autograd.grad(3 * loss, list(leaves.values()))])
    for found, truth in zip(results[1], results[0], strict=True):
        assert_close(found.cpu(), truth, TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.0, 1.0), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_numbers_on_a_device_give_the_dense_loss_of_these_numbers(temperature, weights, backend, kernel_device):
    truth = make_problem(torch.float64)
    truth["hidden"].requires_grad_()
    expected = dense_sums(truth, temperature, *weights)[0]
    device = kernel_device if backend == "triton" else "cpu"
    problem = {name: tensor.to(device) for name, tensor in make_problem(torch.float32).items()}
    problem["hidden"].requires_grad_()
    numbers = dict(
        zip(("temperature", "divergence_weight", "cross_entropy_weight"), (temperature, *weights), strict=True)
    )
    numbers = {name: torch.tensor(number, device=device) for name, number in numbers.items()}
    found = chunked_sums(problem, **numbers, chunk_tokens=5, backend=backend)[0]
    assert_close(found.detach().cpu(), expected.detach(), TOLERANCE[torch.float32])
    gradients = [torch.autograd.grad(loss, given["hidden"])[0] for loss, given in ((found, problem), (expected, truth))]
    assert_close(gradients[0].cpu(), gradients[1], TOLERANCE[torch.float32])


def test_the_square_of_the_temperature_keeps_the_gradients_size() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, VOCABULARY, dtype=torch.float64, generator=generator)
    centered = [logits - logits.mean(dim=-1, keepdim=True) for logits in (student, teacher)]
    # Hinton et al. 2015, equation 4, times T^2: (z - u) / N, of centered logits, where the temperature is high.
    expected = (centered[0] - centered[1]) / VOCABULARY
    head, labels = LinearHead(torch.eye(VOCABULARY, dtype=torch.float64)), torch.full((4,), -100)
    for temperature, off in ((1e2, 0.05), (1e4, 5e-4)):
        logits = student.clone().requires_grad_()
        loss = distillation_sums(logits, head, teacher, head, labels, labels < 0, temperature, 1.0, 0.0, 4).loss
        (gradient,) = torch.autograd.grad(loss, [logits])
        assert (gradient - expected).norm() < off * expected.norm()
