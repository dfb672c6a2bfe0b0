import pytest
import torch

from asnn_goose.kernels import head_chunks
from asnn_goose.kernels.head_chunks import ChunkResult, ChunkSpace, HeadLoss, LinearHead, chunks, head_loss

TOKENS, WIDTH, VOCABULARY = 7, 3, 5


def square_rule(space):
    """The sum of squared logits, with one figure: how many rows."""

    def rule(rows, student, teacher):
        gradient = 2 * student if space.gradient_wanted else None
        return ChunkResult(student.square().sum(), student.new_tensor([len(student)]), gradient, student.sum())

    return rule


def square_in_place_rule(space):
    """The same, which uses up the logits."""

    def rule(rows, student, teacher):
        loss, slope = student.square().sum(), student.sum()
        return ChunkResult(loss, student.new_tensor([len(student)]), student.mul_(2), slope)

    return rule


def made(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def test_chunks_cover_every_token_once():
    assert [(part.start, part.stop) for part in chunks(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert chunks(0, 3) == []


@pytest.mark.parametrize("words", [VOCABULARY, 16])
@pytest.mark.parametrize("rule", [square_rule, square_in_place_rule])
def test_a_rules_gradients_are_those_of_its_loss_for_any_chunk_and_vocabulary(rule, words, monkeypatch):
    monkeypatch.setattr(head_chunks, "filled_up", lambda vocabulary, device: words)
    hidden, weight, bias = made(TOKENS, WIDTH), made(VOCABULARY, WIDTH).t().contiguous().t(), made(VOCABULARY)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    heat = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    dense = (hidden @ weight.T + bias).square().sum()
    expected = [dense, *torch.autograd.grad(3 * dense, leaves)]
    for size in (1, 3, 64):
        how = HeadLoss(torch.ones(TOKENS, 1, dtype=torch.bool), size, None, rule, 1)
        loss, figures = head_loss(hidden, LinearHead(weight, bias), None, heat, how)
        *found, slope = torch.autograd.grad(3 * loss, [*leaves, heat])
        for value, truth in zip((loss, *found), expected, strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)
        assert figures.tolist() == [TOKENS]
        torch.testing.assert_close(slope, 3 * (hidden @ weight.T + bias).sum().detach())


def test_tokens_that_are_not_read_are_zeros():
    hidden, head = made(TOKENS, WIDTH), LinearHead(made(VOCABULARY, WIDTH))
    hidden[2] = torch.nan
    read = torch.arange(TOKENS)[:, None] != 2
    loss, _ = head_loss(hidden, head, None, None, HeadLoss(read, 3, None, square_rule, 1))
    torch.testing.assert_close(loss, (hidden[read[:, 0]] @ head.weight.T).square().sum())


@pytest.mark.gpu
def test_rows_of_logits_begin_where_a_gpu_reads_widely():
    space = ChunkSpace(2, 37, torch.device("cuda"), torch.float32, torch.float32, True, False)
    assert (space.empty().shape, space.empty().stride()) == ((2, 37), (48, 1))
