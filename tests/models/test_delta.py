import pytest
import torch

from asnn_goose.models.delta import delta_rule


def inputs(time, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, time, 1, 2, 4), (2, time, 1, 4), (2, time, 1, 4), (2, time, 1), (2, time, 1), (2, time, 1)]
    tensors = [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) / 2 for shape in shapes]
    return [*tensors[:3], -tensors[3], *tensors[4:], torch.zeros(2, 1, 4, 4, dtype=dtype)]


@pytest.mark.parametrize("time", [1, 5, 130])
def test_every_backend_gives_the_same(time):
    found = [delta_rule(*inputs(time, torch.float64), backend=name) for name in ("auto", "reference", "torch")]
    for read, state in found[1:]:
        torch.testing.assert_close(read, found[0][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(state, found[0][1], rtol=1e-10, atol=1e-12)


def test_autocast_leaves_the_state_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        read, state = delta_rule(*inputs(5))
    assert read.dtype == state.dtype == torch.float32
    assert torch.equal(read, delta_rule(*inputs(5))[0])


@pytest.mark.parametrize("time", [1, 5])
def test_what_is_read_has_the_dtype_of_the_receptance_and_the_state_its_own(time):
    given = inputs(time)
    read, state = delta_rule(*(part.bfloat16() for part in given[:3]), *given[3:])
    assert (read.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        delta_rule(*inputs(0))
