import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from asnn_goose.models.rotary import RotaryPositions, turn


@pytest.fixture(scope="module")
def theirs():
    return LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=4))


def heads(dtype=torch.float32):
    return torch.randn(2, 9, 3, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_it_turns_as_llama_does(theirs):
    rotary = RotaryPositions(tuple(theirs.inv_freq.tolist()), theirs.attention_scaling)
    positions = torch.arange(9).expand(2, 9) + torch.tensor([[0], [400]])
    x = heads()
    cosine, sine = theirs(x, positions)
    expected, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cosine, sine)
    found = turn(x, rotary.tables(positions, x.dtype))
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=2e-4)


def test_products_depend_on_the_distance_alone():
    rotary = RotaryPositions((1.0, 0.3, 0.1, 0.02))
    x, y = heads(torch.float64)[:, :1], heads(torch.float64)[:, 1:2]

    def product(first, second):
        tables = [rotary.tables(torch.full((2, 1), place), x.dtype) for place in (first, second)]
        turned = [turn(part, given) for part, given in zip((x, y), tables, strict=True)]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product(3, 10), product(503, 510), rtol=0, atol=1e-10)


def test_the_first_position_stays_and_lengths_too():
    rotary = RotaryPositions((1.0, 0.3, 0.1, 0.02))
    x = heads(torch.float64)
    turned = turn(x, rotary.tables(torch.arange(9).expand(2, 9), x.dtype))
    assert torch.equal(turned[:, 0], x[:, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_the_same_positions_share_their_angles(dtype):
    rotary, positions = RotaryPositions((1.0, 0.3)), torch.arange(9).expand(3, 9)
    shared, alone = (rotary.tables(part, dtype) for part in (positions, positions.contiguous()))
    assert [table.shape for table in shared] == [(1, 9, 2)] * 2
    for table, own in zip(shared, alone, strict=True):
        assert table.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(table.expand_as(own), own)
