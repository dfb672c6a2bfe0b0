import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from asnn_goose.kernels.reference import membrane_reference
from asnn_goose.spikes import membrane as module
from asnn_goose.spikes.membrane import MembraneSpec, fire
from asnn_goose.spikes.surrogate import SurrogateSpec, surrogate_derivative

# The written formula in another order of its terms, in float64, over twenty steps.
GRADIENTS = {"rtol": 0.0, "atol": 1e-9}
KINDS = ("clipped_ste", "ste", "sigmoid", "triangle", "superspike", "atan")


class Written(torch.autograd.Function):
    """The staircase and its surrogate as the formula has them."""

    @staticmethod
    def forward(ctx, u, levels, surrogate, signed):
        ctx.save_for_backward(u)
        ctx.choices = levels, surrogate, signed
        size = ((u.abs() if signed else u) + 0.5).floor().clamp(0, levels)
        return u.sign() * size if signed else size

    @staticmethod
    def backward(ctx, gradient):
        return gradient * surrogate_derivative(*ctx.saved_tensors, *ctx.choices), None, None, None


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["numba", "torch"])
def form(request):
    """Each form that runs in float64 on a CPU, chosen whatever the number of steps."""
    torch_form = module._Form(module._fire_torch, module._fire_backward_torch)
    chosen = torch_form if request.param == "torch" else module._numba_form()
    if chosen is None:
        pytest.skip("install the cpu extra to test the numba membrane")
    with mock.patch.object(module, "_form", return_value=chosen):
        yield


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("levels", "signed"), [(1, True), (3, True), (2, False)])
def test_gradients_through_time_are_those_of_the_written_loop(kind, detach, levels, signed):
    surrogate = SurrogateSpec(kind, width=0.6, gradient_scale=0.5)
    valid = torch.rand(2, 20, generator=torch.Generator().manual_seed(3)) < 0.8
    leaves = [noise(2, 20, 5).requires_grad_(), noise(2, 5, seed=1).requires_grad_()]
    found = fire(*leaves, valid, MembraneSpec(0.9, detach), levels, signed, surrogate)
    values, _, last = membrane_reference(
        *leaves, valid, 0.9, lambda u: Written.apply(u, levels, surrogate, signed), detach
    )
    weights, of_last = noise(2, 20, 5, seed=2), noise(2, 5, seed=4)
    assert torch.equal(found[0], values)
    assert torch.equal(found[1], last)
    gradients, expected = (
        torch.autograd.grad((spikes * weights).sum() + (membrane * of_last).sum(), leaves)
        for spikes, membrane in (found, (values, last))
    )
    for gradient, truth in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, truth, **GRADIENTS)


@pytest.mark.usefixtures("form")
def test_gradients_fade_by_the_leak_alone_where_the_reset_is_detached_and_end_at_a_spike_where_not():
    # One spike is looked at, of five equal activations; the surrogate is 1 wherever it is looked at.
    reached = {}
    for detach in (True, False):
        z = torch.full((1, 5, 1), 0.25, dtype=torch.float64, requires_grad=True)
        values, _ = fire(z, None, None, MembraneSpec(0.5, detach), 1, True, SurrogateSpec("ste"))
        (gradient,) = torch.autograd.grad(values[0, 4, 0], z)
        reached[detach] = gradient.flatten().tolist()
    assert reached == {True: [0.0625, 0.125, 0.25, 0.5, 1.0], False: [0.0, 0.0, 0.0, 0.0, 1.0]}


@pytest.mark.usefixtures("form")
def test_silence_stays_silent_and_finite_both_ways():
    z = torch.zeros(2, 7, 3, dtype=torch.float64, requires_grad=True)
    values, last = fire(z, None, None, MembraneSpec(), 1, True, SurrogateSpec())
    values.sum().backward()
    assert values.abs().sum() == last.abs().sum() == 0
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_a_leak_that_forgets_nothing_or_less_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got .*; see spikes\.membrane"):
        MembraneSpec(beta)


def chosen(time, device="cpu", dtype=torch.float32):
    """The form for so many steps on a device, which need not be there."""
    with FakeTensorMode():
        z = torch.empty(2, time, 3, device=device, dtype=dtype)
    with (
        mock.patch.object(module, "_numba_form", return_value=module._Form(min, min)),
        mock.patch.object(module, "_triton_form", return_value=module._Form(max, max)),
    ):
        return {min: "numba", max: "triton", module._fire_torch: "torch"}[module._form(z).forward]


def test_many_steps_run_in_a_compiled_kernel_and_one_in_torch():
    assert chosen(2) == chosen(2, dtype=torch.float64) == "numba"
    assert chosen(2, "cuda") == "triton"
    assert chosen(1) == chosen(1, "cuda") == chosen(2, "cuda", torch.float64) == "torch"


@pytest.mark.parametrize(
    ("missing", "names", "choose"),
    [
        ("triton", ("membrane_triton", "membrane_triton_kernels"), module._triton_form),
        ("numba", ("membrane_numba", "numba_runtime"), module._numba_form),
    ],
)
def test_without_a_compiler_there_is_no_compiled_form(monkeypatch, missing, names, choose):
    monkeypatch.setitem(sys.modules, missing, None)
    for name in names:
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{name}", raising=False)
    assert choose.__wrapped__() is None
