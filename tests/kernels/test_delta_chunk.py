import pytest
import torch

from asnn_goose.kernels.delta_chunk import delta_rule_chunked
from asnn_goose.kernels.delta_reference import delta_rule_reference

BATCH, HEADS, GROUP, KEY, VALUE = 2, 3, 2, 8, 6
LEAST_LOG_DECAY = -0.6065
NAMES = ("receptance", "key", "value", "log_decay", "erase", "write", "initial_state")


def inputs(time, dtype=torch.float64, density=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    spikes = torch.randint(-1, 2, (BATCH, time, HEADS, KEY), generator=generator).to(dtype)
    spikes *= torch.rand(spikes.shape, generator=generator) < density
    key = spikes * spikes.square().sum(-1, keepdim=True).clamp_min(1).rsqrt()
    rates = [torch.rand(BATCH, time, HEADS, dtype=dtype, generator=generator) for _ in range(3)]
    tensors = {
        "receptance": normal(BATCH, time, HEADS, GROUP, KEY), "key": key, "value": normal(BATCH, time, HEADS, VALUE),
        "log_decay": LEAST_LOG_DECAY * rates[0], "erase": rates[1], "write": rates[2],
        "initial_state": normal(BATCH, HEADS, VALUE, KEY),
    }  # fmt: skip
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def mask(time):
    valid = torch.rand(BATCH, time, generator=torch.Generator().manual_seed(5)) < 0.7
    valid[0, : time // 2] = False
    return valid


def results(rule, tensors, valid, **options):
    """Values, final state and all gradients."""
    given = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    read, state = rule(*(given[name] for name in NAMES), valid, **options)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(part.shape, dtype=torch.float64, generator=generator).to(part) for part in (read, state)]
    (read * weights[0]).sum().add((state * weights[1]).sum()).backward()
    return {"read": read.detach(), "state": state.detach()} | {name: given[name].grad for name in NAMES}


@pytest.mark.parametrize("time", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_chunks_give_the_values_and_gradients_of_the_loop(time, chunk, masked, density):
    tensors, valid = inputs(time, density=density), mask(time) if masked else None
    expected = results(delta_rule_reference, tensors, valid)
    found = results(delta_rule_chunked, tensors, valid, chunk=chunk)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_float32_stays_near_float64():
    tensors = inputs(200)
    expected = results(delta_rule_reference, tensors, None)
    single = {name: tensor.float() for name, tensor in tensors.items()}
    for name, value in results(delta_rule_chunked, single, None).items():
        error = (value.double() - expected[name]).norm() / expected[name].norm()
        assert error < 5e-6, name


@pytest.mark.parametrize("cut", [1, 5, 16, 20])
def test_a_sequence_cut_in_two_with_the_state_carried_is_the_whole(cut):
    tensors = inputs(24)
    given = [tensors[name].detach() for name in NAMES]
    whole, last = delta_rule_chunked(*given, None, chunk=8)
    first, state = delta_rule_chunked(*(tensor[:, :cut] for tensor in given[:-1]), given[-1], None, chunk=8)
    second, end = delta_rule_chunked(*(tensor[:, cut:] for tensor in given[:-1]), state, None, chunk=8)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=0, atol=1e-12)


def test_a_later_token_changes_nothing_earlier():
    tensors = inputs(20)
    given = [tensors[name].detach() for name in NAMES]
    before, _ = delta_rule_chunked(*given, None, chunk=8)
    changed = [tensor.clone() for tensor in given]
    for tensor in changed[:-1]:
        tensor[:, 13] *= 0.5
    after, _ = delta_rule_chunked(*changed, None, chunk=8)
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13:], after[:, 13:])


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_long_periodic_input_keeps_the_state_bounded(period):
    """Law 15: no product of transitions grows, whatever repeats; here with no decay at all."""
    tensors = inputs(period, dtype=torch.float32)
    repeats = 100_000 // period
    state = torch.zeros(BATCH, HEADS, VALUE, KEY)
    rule = [tensors[name].detach() for name in NAMES[:-1]]
    rule[3] = torch.full_like(rule[3], -1e-4)
    block = [tensor.repeat(1, 200, *[1] * (tensor.ndim - 2)) for tensor in rule]
    largest = 0.0
    for _ in range(max(1, repeats // 200)):
        _, state = delta_rule_chunked(*block, state, None)
        largest = max(largest, float(state.norm()))
    assert torch.isfinite(state).all()
    assert largest < 1e5


def test_silent_tokens_stay_finite_forward_and_backward():
    tensors = {name: torch.zeros_like(tensor) for name, tensor in inputs(9).items()}
    found = results(delta_rule_chunked, tensors, None)
    assert all(torch.isfinite(value).all() for value in found.values())
