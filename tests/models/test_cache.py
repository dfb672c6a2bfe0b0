import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from asnn_goose.models.cache import RecurrentCache

# Float64 rounding, some hundred operations deep, on numbers of order 10.
ROUNDING = {"rtol": 0.0, "atol": 1e-11}
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
PARTS = ("state", "shift", "tokens_seen")
MEMBRANES = {"spikes": {"sites": "all+head", "scale": "token", "membrane": {"beta": 0.9}}}


@pytest.fixture(params=[{}, MEMBRANES], ids=["default", "membranes"])
def plain_student(request, make_student):
    """A student of the default form, and one with a membrane at each site."""
    return make_student(**request.param)


@torch.no_grad()
def cache_after(student, ids, mask=None, past=None):
    return student(ids, attention_mask=mask, past_key_values=past, use_cache=True).past_key_values


def assert_same_memory(cache, expected):
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        for part in PARTS:
            torch.testing.assert_close(getattr(layer, part), getattr(other, part), **ROUNDING)
        torch.testing.assert_close(layer.membranes, other.membranes, **ROUNDING)


@pytest.fixture
def memory(plain_student, ids):
    return cache_after(plain_student, ids)


def test_size_does_not_grow_with_the_context(make_student):
    student = make_student(positions="none")
    token = torch.ones(1, 1, dtype=torch.long)
    sizes = [
        {name: tensor.numel() for name, tensor in cache_after(student, token.expand(1, time)).to_tensors().items()}
        for time in (1, 10, 300)
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    assert sum(sizes[0].values()) == 3 * (24 + 24 + 1 + 1)


def test_a_membrane_is_one_number_a_channel_and_the_heads_lies_with_the_last_layer(make_student, ids):
    first, _, last = cache_after(make_student(**MEMBRANES), ids).layers
    widths = {"k": 24, "v": 24, "mixer_out": 24, "ffn_in": 24, "ffn_mid": 96}
    assert {site: part.shape for site, part in first.membranes.items()} == {
        site: (3, width) for site, width in widths.items()
    }
    assert set(last.membranes) == {*widths, "head_in"}


@pytest.mark.parametrize("padding", [(4, 0), (0, 4)])
def test_padded_steps_leave_the_memory_untouched(student, ids, padding):
    mask = functional.pad(torch.ones_like(ids), padding)
    padded = cache_after(student, functional.pad(ids, padding), mask)
    assert_same_memory(padded, cache_after(student, ids))
    assert padded.get_seq_length() == 24


def test_a_wholly_padded_call_is_no_call(student, ids):
    cache = cache_after(student, ids)
    before = {name: tensor.clone() for name, tensor in cache.to_tensors().items() if "columns" not in name}
    after = cache_after(student, ids[:, :5], torch.zeros(3, 5, dtype=torch.long), cache).to_tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@torch.no_grad()
def test_continuing_after_right_padding_is_continuing_without(student, ids):
    mask = functional.pad(torch.ones_like(ids[:, :12]), (0, 3))
    past = cache_after(student, functional.pad(ids[:, :12], (0, 3)), mask)
    whole_mask = functional.pad(mask, (0, 8), value=1)
    continued = student(ids[:, 12:], attention_mask=whole_mask, past_key_values=past).logits
    torch.testing.assert_close(continued, student(ids).logits[:, 12:], **ROUNDING)


@torch.no_grad()
def test_rows_of_unequal_length_continue_as_they_would_alone(student, ids):
    mask = torch.ones_like(ids[:, :12])
    mask[0, :5] = mask[1, 9:] = 0
    cache = cache_after(student, ids[:, :12], mask)
    together = student(ids[:, 12:], past_key_values=cache).logits
    rows = [torch.cat((row[:12][kept.bool()], row[12:])) for row, kept in zip(ids, mask, strict=True)]
    alone = torch.cat([student(row.unsqueeze(0)).logits[:, -8:] for row in rows])
    torch.testing.assert_close(together, alone, **ROUNDING)
    assert cache.layers[0].tokens_seen.tolist() == [15, 17, 20]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5, "top_k": 20},
        {"do_sample": False, "num_beams": 4},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampling", "beams", "returned-beams"],
)
def test_generation_with_the_cache_is_generation_without(student, ids, options):
    produced = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        produced.append(student.generate(ids, max_new_tokens=10, pad_token_id=0, use_cache=use_cache, **options))
    assert torch.equal(*produced)


def test_generating_on_from_a_returned_cache_is_one_long_generation(student, ids):
    first = student.generate(ids, return_dict_in_generate=True, **GREEDY)
    second = student.generate(first.sequences, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(second, student.generate(ids, **(GREEDY | {"max_new_tokens": 20})))


def test_generate_returns_a_cache_that_has_not_seen_the_last_token(plain_student, ids):
    cache = plain_student.generate(ids, return_dict_in_generate=True, **GREEDY).past_key_values
    assert isinstance(cache, RecurrentCache)
    assert cache.get_seq_length() == 20 + 10 - 1


@torch.no_grad()
def test_a_cache_saved_and_restored_continues_identically(student, ids, tmp_path):
    save_file(cache_after(student, ids[:, :12]).to_tensors(), tmp_path / "memory.safetensors")
    restored = RecurrentCache.from_tensors(load_file(tmp_path / "memory.safetensors"), layers=3)
    assert restored.get_seq_length() == 12
    straight = student(ids[:, 12:], past_key_values=cache_after(student, ids[:, :12])).logits
    assert torch.equal(student(ids[:, 12:], past_key_values=restored).logits, straight)


def test_an_empty_cache_has_no_tensors_and_is_restored_empty():
    assert RecurrentCache(3).to_tensors() == {}
    assert RecurrentCache.from_tensors({}, layers=3).get_seq_length() == 0


def test_reordering_takes_the_rows_of_the_chosen_beams(memory, plain_student, ids):
    memory.reorder_cache(torch.tensor([2, 0, 0]))
    assert_same_memory(memory, cache_after(plain_student, ids[[2, 0, 0]]))


def test_repeating_repeats_each_row_beside_itself(memory, plain_student, ids):
    memory.batch_repeat_interleave(2)
    assert_same_memory(memory, cache_after(plain_student, ids[[0, 0, 1, 1, 2, 2]]))
    assert memory.layers[0].batch_size == 6


def test_selecting_keeps_the_given_rows(memory, plain_student, ids):
    memory.batch_select_indices(torch.tensor([1]))
    assert_same_memory(memory, cache_after(plain_student, ids[1:2]))


def test_taking_nothing_back_changes_nothing(memory, plain_student, ids):
    memory.crop(0)
    assert_same_memory(memory, cache_after(plain_student, ids))


@pytest.mark.parametrize("tokens", [1, -1])
def test_taking_tokens_back_is_refused(memory, tokens):
    with pytest.raises(ValueError, match="cannot forget"):
        memory.crop(tokens)


def test_a_reset_cache_is_a_new_one(memory, plain_student, ids):
    memory.reset()
    assert memory.get_seq_length() == 0
    assert_same_memory(cache_after(plain_student, ids, past=memory), cache_after(plain_student, ids))


@torch.no_grad()
def test_an_offloaded_cache_continues_as_before(memory, plain_student, ids):
    expected = plain_student(ids, past_key_values=cache_after(plain_student, ids)).logits
    for layer in memory.layers:
        layer.offload()
        layer.prefetch()
    assert torch.equal(plain_student(ids, past_key_values=memory).logits, expected)


@torch.no_grad()
def test_the_state_is_float32_in_a_bfloat16_student(make_student, ids):
    layer = cache_after(make_student(spikes={"membrane": {}}).bfloat16(), ids).layers[0]
    assert layer.state.dtype == torch.float32
    assert {membrane.dtype for membrane in layer.membranes.values()} == {torch.float32}
    assert layer.shift.dtype == torch.bfloat16


def test_without_a_cache_asked_for_none_is_returned(plain_student, ids):
    assert plain_student(ids).past_key_values is None
