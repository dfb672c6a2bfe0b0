import pytest
import torch

from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.objectives.entropy import softened_entropy

WORDS, WIDTH, TOKENS = 11, 6, 9


@pytest.mark.parametrize("chunk_tokens", [1, 4, 20])
def test_entropy_and_its_slope_are_the_dense_ones(chunk_tokens):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    weight, bias = (torch.randn(WORDS, *shape, dtype=torch.float64, generator=generator) for shape in ((WIDTH,), ()))
    heats = [torch.tensor(1.7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    found = softened_entropy(hidden, LinearHead(weight, bias), heats[0], chunk_tokens)
    expected = torch.distributions.Categorical(logits=(hidden @ weight.T + bias) / heats[1]).entropy().sum()
    (2 * found).backward()
    (2 * expected).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert heats[0].grad.item() == pytest.approx(heats[1].grad.item(), rel=1e-10)


def test_equal_logits_have_the_entropy_of_as_many_words():
    with torch.inference_mode():
        hidden = torch.zeros(3, WIDTH)
    heat = torch.tensor(2.0, requires_grad=True)
    entropy = softened_entropy(hidden, LinearHead(torch.ones(WORDS, WIDTH)), heat, 2)
    entropy.backward()
    assert entropy.item() == pytest.approx(3 * torch.tensor(float(WORDS)).log().item(), rel=1e-6)
    assert heat.grad.item() == pytest.approx(0.0, abs=1e-6)
