import importlib

import pytest
import torch

CHUNKS, VALUE, KEY = 3, 16, 32
# Three tf32 products of 21 bits a chunk.
TOLERANCE = 5e-6


def test_the_state_and_its_gradient_are_carried_as_the_transpose_of_each_other(kernel_device):
    """<S', F'> = <S, F> for S' = w S + S E^T forward and F = w F' + F' E backward, where nothing else is added."""
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its delta rule")
    kernels = importlib.import_module("asnn_goose.kernels.delta_triton_kernels")
    backward = importlib.import_module("asnn_goose.kernels.delta_triton_kernels_backward")
    generator = torch.Generator().manual_seed(0)
    initial, flow, erasing, kept = (
        torch.randn(shape, generator=generator).to(kernel_device) / 8
        for shape in ((1, VALUE, KEY), (1, VALUE, KEY), (CHUNKS, KEY, KEY), (CHUNKS,))
    )
    none, places = torch.zeros(CHUNKS, VALUE, KEY).to(kernel_device), torch.empty(CHUNKS, VALUE, KEY).to(kernel_device)
    final, first, sizes = torch.empty_like(initial), torch.empty_like(flow), {"width": KEY, "value_width": VALUE}
    kernels.carry_kernel[(1, 1)](initial, erasing, none, kept, places, final, CHUNKS, **sizes, block=16, stages=1)
    state = initial[0].double()
    for place in range(CHUNKS):
        assert (places[place] - state).abs().max() < TOLERANCE
        state = kept[place].double() * state + state @ erasing[place].double().T
    assert (final[0] - state).abs().max() < TOLERANCE
    backward.carry_backward_kernel[(1, 1)](
        flow, erasing, none, kept, places, first, CHUNKS, **sizes, block=16, stages=1
    )
    assert ((initial * first).sum() - (final * flow).sum()).abs() < TOLERANCE
