import pytest
import torch

from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_targets import TopWords, dynamics_sums, top_words_sums

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY, TOP = 11, 6, 9, 23, 4
# Two orders of summation over 23 words and 11 tokens; float32 also rounds 1 - sum of the top words.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.fixture(params=TOLERANCE, ids=str)
def problem(request):
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden": (TOKENS, WIDTH), "weight": (VOCABULARY, WIDTH), "bias": (VOCABULARY,)}
    shapes |= {"teacher": (TOKENS, TEACHER_WIDTH), "teacher_weight": (VOCABULARY, TEACHER_WIDTH)}
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: tensor.to(request.param) for name, tensor in made.items()} | {"valid": torch.arange(TOKENS) % 3 != 1}


def gradients(value, *leaves):
    return [value.detach().double(), *(part.double() for part in torch.autograd.grad(2 * value, leaves))]


def assert_equal_sums(found, expected, dtype):
    for part, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(part, truth, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_top_words_and_their_tail_are_the_dense_kl_over_so_many_outcomes(problem, chunk):
    dtype, heat = problem["hidden"].dtype, 1.5
    leaves = [problem[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    log_p, words = (problem["teacher"] @ problem["teacher_weight"].T / heat).log_softmax(-1).topk(TOP)
    head = LinearHead(problem["weight"], problem["bias"])
    loss, _ = top_words_sums(problem["hidden"], head, TopWords(words, log_p), problem["valid"], heat, chunk)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    q = ((doubles[0] @ doubles[1].T + doubles[2]) / heat).softmax(-1).gather(1, words)
    p = log_p.double().exp()
    p, q = (torch.cat((part, 1 - part.sum(-1, keepdim=True)), dim=-1) for part in (p, q))
    dense = heat**2 * (p * (p / q).log()).sum(-1)[problem["valid"]].sum()
    assert_equal_sums(gradients(loss, *leaves), gradients(dense, *doubles), dtype)


def test_all_words_as_top_words_are_the_whole_kl(problem):
    teacher = problem["teacher"] @ problem["teacher_weight"].T
    log_p, words = teacher.log_softmax(-1).topk(VOCABULARY - 1)
    head = LinearHead(problem["weight"], problem["bias"])
    _, found = top_words_sums(problem["hidden"], head, TopWords(words, log_p), problem["valid"], 1.0, 4)
    log_q = (problem["hidden"] @ problem["weight"].T + problem["bias"]).log_softmax(-1)
    expected = (teacher.softmax(-1) * (teacher.log_softmax(-1) - log_q)).sum(-1)[problem["valid"]].sum()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_dynamics_are_the_dense_cosines_of_log_probabilities(problem, chunk):
    dtype = problem["hidden"].dtype
    layers = torch.stack((problem["hidden"], problem["hidden"].roll(1, 0) * 0.5), dim=1)
    wanted = torch.stack((problem["teacher"], problem["teacher"].roll(1, 0)), dim=1)
    leaves = [leaf.requires_grad_() for leaf in (layers, problem["weight"], problem["bias"])]
    heads = LinearHead(leaves[1], leaves[2]), LinearHead(problem["teacher_weight"])
    loss = dynamics_sums(layers, heads[0], wanted, heads[1], problem["valid"], chunk)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    teacher = (wanted.double() @ problem["teacher_weight"].double().T).log_softmax(-1)
    student = (doubles[0] @ doubles[1].T + doubles[2]).log_softmax(-1)
    cosine = torch.cosine_similarity(student[:, 1] - student[:, 0], teacher[:, 1] - teacher[:, 0], dim=-1)
    dense = (1 - cosine)[problem["valid"]].sum()
    assert_equal_sums(gradients(loss, *leaves), gradients(dense, *doubles), dtype)


def test_a_change_of_nothing_has_no_gradient(problem):
    still = problem["hidden"][:, None].expand(-1, 2, -1).clone().requires_grad_()
    heads = LinearHead(problem["weight"]), LinearHead(problem["teacher_weight"])
    wanted = problem["teacher"][:, None].expand(-1, 2, -1)
    loss = dynamics_sums(still, heads[0], wanted, heads[1], problem["valid"], 4)
    assert loss.item() == problem["valid"].sum().item()
    assert not torch.autograd.grad(loss, still)[0].any()


def test_a_change_of_rounding_alone_has_no_gradient(problem):
    # A matrix product may round the same row differently at another place.
    near = torch.nextafter(problem["hidden"], torch.tensor(torch.inf, dtype=problem["hidden"].dtype))
    layers = torch.stack((problem["hidden"], near), dim=1).requires_grad_()
    heads = LinearHead(problem["weight"]), LinearHead(problem["teacher_weight"])
    wanted = torch.stack((problem["teacher"], problem["teacher"].roll(1, 0)), dim=1)
    loss = dynamics_sums(layers, heads[0], wanted, heads[1], problem["valid"], 4)
    assert loss.item() == problem["valid"].sum().item()
    assert not torch.autograd.grad(loss, layers)[0].any()


def test_a_temperature_or_chunk_of_nothing_is_refused(problem):
    words = TopWords(torch.zeros(TOKENS, 1, dtype=torch.long), torch.zeros(TOKENS, 1))
    head, layers = LinearHead(problem["weight"]), problem["hidden"][:, None].expand(-1, 2, -1)
    with pytest.raises(ValueError, match="above 0, got 0"):
        top_words_sums(problem["hidden"], head, words, problem["valid"], 0.0, 4)
    with pytest.raises(ValueError, match="chunk_tokens must be above 0, got 0"):
        dynamics_sums(layers, head, layers, head, problem["valid"], 0)
