import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from asnn_goose.spikes import encoder as module
from asnn_goose.spikes.encoder import LEAST_WORTHWHILE, WIDEST_ON_GPU, SpikeEncoder
from asnn_goose.spikes.membrane import MembraneSpec
from asnn_goose.spikes.surrogate import SurrogateSpec

# Ten numbers whose mean magnitude is 1, so that with alpha = 1 the threshold is 1, the step 2 and z = x / 2.
TOKEN = [5.0, -3.0, 1.0, -0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
# Closed forms are compared in float64, where a handful of operations round to far less than this.
CLOSE = {"rtol": 0.0, "atol": 1e-12}
# Two float32 orders of a hundred numbers and a quotient on a GPU; then the last bit of a gradient in bfloat16.
SAME = {torch.float32: {"rtol": 3e-6, "atol": 0.0}, torch.bfloat16: {"rtol": 2**-7, "atol": 0.0}}
RECORDED = SurrogateSpec("recorded_ste")


def token(requires_grad=False):
    return torch.tensor([TOKEN], dtype=torch.float64, requires_grad=requires_grad)


def encoder(**choices):
    return SpikeEncoder(width=len(TOKEN), **choices).double()


def random_tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("levels", "alpha", "expected"),
    [
        (1, 1.0, [1, -1, 1, 0, 0, 0, 0, 0, 0, 0]),
        (2, 1.0, [2, -2, 1, 0, 0, 0, 0, 0, 0, 0]),
        (3, 1.0, [3, -2, 1, 0, 0, 0, 0, 0, 0, 0]),
        (3, 0.5, [3, -3, 1, -1, 1, 0, 0, 0, 0, 0]),
        (1, 4.0, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("surrogate", [SurrogateSpec(), RECORDED])
def test_values_are_those_computed_by_hand(levels, alpha, expected, surrogate):
    spikes = encoder(levels=levels, alpha=alpha, surrogate=surrogate)(token())
    assert spikes.values.tolist() == [expected]


@pytest.mark.parametrize(("size", "step"), [(0.001, 0.02), (0.5, 1.0), (100.0, 20.0)])
def test_threshold_is_clamped_between_a_hundredth_and_ten(size, step):
    spikes = encoder(scale="token")(torch.full((1, 10), size, dtype=torch.float64))
    torch.testing.assert_close(spikes.token_scale, torch.tensor([[step]], dtype=torch.float64), **CLOSE)


def test_what_lies_below_the_smallest_threshold_is_silent():
    assert encoder()(torch.full((1, 10), 0.009, dtype=torch.float64)).values.count_nonzero() == 0


def test_a_token_spikes_alone_as_in_its_batch():
    x = random_tokens(4, 7, 10)
    together = encoder(levels=3)(x).values
    alone = torch.stack([torch.stack([encoder(levels=3)(step).values for step in row]) for row in x])
    assert torch.equal(together, alone)


def test_later_tokens_leave_earlier_spikes_as_they_were():
    x = random_tokens(2, 7, 10)
    changed = x.clone()
    changed[:, 4:] *= 100.0
    assert torch.equal(encoder(levels=3)(x).values[:, :4], encoder(levels=3)(changed).values[:, :4])


@pytest.mark.parametrize(
    "surrogate", ["clipped_ste", "ste", "sigmoid", "triangle", "superspike", "atan", "recorded_ste"]
)
@pytest.mark.parametrize("scale", ["none", "token"])
def test_silent_tokens_stay_finite_forward_and_backward(surrogate, scale):
    x = torch.zeros(2, 3, 10, dtype=torch.float64, requires_grad=True)
    spiking = encoder(surrogate=SurrogateSpec(surrogate), scale=scale, learn_alpha=True)
    dense = spiking(x).dense()
    dense.sum().backward()
    assert torch.equal(dense, torch.zeros_like(dense))
    assert all(tensor.grad.isfinite().all() for tensor in (x, *spiking.parameters()) if tensor.grad is not None)


def test_gradient_of_a_spike_is_the_surrogate_over_the_step():
    x = token(requires_grad=True)
    encoder(surrogate=SurrogateSpec("triangle"))(x).values.sum().backward()
    # z = 2.5, 1.5, 0.5, 0.25, 0.25, 0 lie 2, 1, 0, 1/4, 1/4, 1/2 from the threshold at 1/2; the step is 2.
    by_hand = [0.0, 0.0, 1.0, 0.75, 0.75] + [0.5] * 5
    torch.testing.assert_close(x.grad, torch.tensor([by_hand], dtype=torch.float64) / 2.0, **CLOSE)


@pytest.mark.parametrize("scale", ["none", "token"])
@pytest.mark.parametrize("amplitude", ["none", "scalar", "channel"])
def test_recorded_estimator_passes_the_gradient_to_x_whatever_the_amplitude(scale, amplitude):
    x = token(requires_grad=True)
    spiking = encoder(surrogate=RECORDED, scale=scale, amplitude=amplitude)
    if spiking.amplitude is not None:
        spiking.amplitude.data.uniform_(0.1, 3.0, generator=torch.Generator().manual_seed(0))
    weights = random_tokens(1, 10)
    (spiking(x).dense() * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights, **CLOSE)


@pytest.mark.parametrize(("scale", "step"), [("none", 1.0), ("token", 2.0)])
def test_recorded_estimator_gives_the_amplitude_its_spikes(scale, step):
    spiking = encoder(surrogate=RECORDED, scale=scale, amplitude="channel", levels=3)
    spiking(token(requires_grad=True)).dense().sum().backward()
    expected = step * torch.tensor([3.0, -2.0, 1.0] + [0.0] * 7, dtype=torch.float64)
    torch.testing.assert_close(spiking.amplitude.grad, expected, **CLOSE)


@pytest.mark.parametrize("scale", ["none", "token"])
def test_recorded_estimator_gives_alpha_nothing(scale):
    spiking = encoder(surrogate=RECORDED, scale=scale, learn_alpha=True)
    spiking(token(requires_grad=True)).dense().sum().backward()
    assert spiking.alpha.grad is None or spiking.alpha.grad == 0.0


@pytest.mark.parametrize("scale", ["none", "token"])
def test_alpha_learns_through_the_step_size(scale):
    # ds/dstep = -z h(z) / step, and d(step * s)/dstep = s - z h(z) as in LSQ. Twice the mean magnitude is dstep/dalpha:
    # it is 2, the step itself.
    spiking = encoder(learn_alpha=True, scale=scale, surrogate=SurrogateSpec("triangle"))
    weights = random_tokens(1, 10)
    (spiking(token()).dense() * weights).sum().backward()
    z = torch.tensor([TOKEN], dtype=torch.float64) / 2.0
    bump = (1.0 - (z.abs() - 0.5).abs()).clamp_min(0.0)
    values = torch.tensor([[1.0, -1.0, 1.0] + [0.0] * 7], dtype=torch.float64)
    slope = -z * bump / 2.0 if scale == "none" else values - z * bump
    torch.testing.assert_close(spiking.alpha.grad, (weights * slope * 2.0).sum(), **CLOSE)


def test_alpha_gets_no_gradient_where_the_threshold_is_clamped():
    spiking = encoder(learn_alpha=True)
    spiking(torch.full((1, 10), 1e-4, dtype=torch.float64)).values.sum().backward()
    assert spiking.alpha.grad == 0.0


@pytest.mark.parametrize(("amplitude", "shape"), [("scalar", ()), ("channel", (10,))])
def test_amplitude_starts_at_one_in_its_shape(amplitude, shape):
    torch.testing.assert_close(encoder(amplitude=amplitude).amplitude.detach(), torch.ones(shape, dtype=torch.float64))


def test_dense_form_is_amplitude_times_step_times_values():
    spiking = encoder(amplitude="channel", scale="token", levels=3)
    spiking.amplitude.data.copy_(torch.arange(10))
    expected = 2.0 * torch.tensor([[0.0 * 3, 1.0 * -2, 2.0 * 1] + [0.0] * 7], dtype=torch.float64)
    torch.testing.assert_close(spiking(token()).dense(), expected, **CLOSE)


def test_without_amplitude_and_scale_the_dense_form_is_the_spikes():
    spikes = encoder(amplitude="none", scale="none")(token())
    assert spikes.amplitude is None
    assert spikes.token_scale is None
    assert torch.equal(spikes.dense(), spikes.values)


def test_bfloat16_input_spikes_as_its_float32_copy():
    x = random_tokens(3, 10).bfloat16()
    spiking = SpikeEncoder(width=10, levels=3, scale="token")
    spikes = spiking(x)
    assert spikes.values.dtype == spikes.token_scale.dtype == torch.float32
    assert torch.equal(spikes.values, spiking(x.float()).values)


@pytest.mark.parametrize("surrogate", [SurrogateSpec(), RECORDED])
def test_values_are_integers_within_the_levels(surrogate):
    values = encoder(levels=3, alpha=0.3, surrogate=surrogate)(random_tokens(50, 10)).values
    assert set(values.unique().tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}


def takes_triton(tokens, width=64, dtype=torch.float32, **choices):
    """Whether an encoder chooses Triton for so many tokens on a GPU, which need not be there."""
    with FakeTensorMode():
        x = torch.empty(tokens, width, device="cuda", dtype=dtype)
    with mock.patch.object(module, "_triton_encoder", return_value=len):
        return SpikeEncoder(width, **choices)._compiled_kernel(x) is len


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["clipped_ste", "ste"])
def test_many_tokens_on_a_gpu_are_encoded_by_triton(dtype, kind):
    enough = LEAST_WORTHWHILE["cuda"] // 64
    assert takes_triton(enough, dtype=dtype, surrogate=SurrogateSpec(kind))
    assert not takes_triton(enough - 1, dtype=dtype, surrogate=SurrogateSpec(kind))


def test_what_triton_is_not_written_for_is_encoded_by_torch_on_a_gpu(monkeypatch):
    tokens = LEAST_WORTHWHILE["cuda"]
    assert not takes_triton(tokens, learn_alpha=True)
    assert not takes_triton(tokens, surrogate=SurrogateSpec("triangle"))
    assert not takes_triton(tokens, surrogate=RECORDED)
    assert not takes_triton(tokens, dtype=torch.float64)
    assert takes_triton(tokens, width=WIDEST_ON_GPU)
    assert not takes_triton(tokens, width=WIDEST_ON_GPU + 1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not takes_triton(tokens)


def test_without_triton_torch_encodes_on_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("encoder_triton", "encoder_triton_kernels"):
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{name}", raising=False)
    assert module._triton_encoder.__wrapped__() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("surrogate", [SurrogateSpec(width=0.7, gradient_scale=0.5), SurrogateSpec("ste")])
@pytest.mark.parametrize("levels", [1, 4, 8])
def test_triton_gives_the_spikes_steps_and_gradients_of_torch(dtype, surrogate, levels, kernel_device):
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its encoder")
    spiking = SpikeEncoder(100, levels, amplitude="channel", scale="token", surrogate=surrogate).to(kernel_device)
    found, weights = [], random_tokens(2, 9, 100).to(kernel_device)
    for kernel in (module._triton_encoder(), None):
        x = random_tokens(2, 9, 100, seed=1).to(kernel_device, dtype).requires_grad_()
        with mock.patch.object(SpikeEncoder, "_compiled_kernel", return_value=kernel):
            spikes = spiking(x)
        found.append((spikes, torch.autograd.grad((spikes.dense() * weights).sum(), x)[0]))
    (given, gradient), (expected, true) = found
    assert torch.equal(given.values, expected.values)
    assert given.values.dtype == torch.float32
    torch.testing.assert_close(given.token_scale, expected.token_scale, **SAME[torch.float32])
    torch.testing.assert_close(gradient, true, **SAME[dtype])


def test_the_widest_token_is_that_of_the_kernel():
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its encoder")
    from asnn_goose.kernels.encoder_triton import MOST_WIDTH

    assert MOST_WIDTH == WIDEST_ON_GPU


@pytest.mark.parametrize(
    ("levels", "alpha", "expected"),
    [(1, 1.0, [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]), (3, 0.5, [3, 0, 1, 0, 1, 0, 0, 0, 0, 0])],
)
@pytest.mark.parametrize("surrogate", [SurrogateSpec(), RECORDED])
def test_binary_values_are_those_of_positive_activations(levels, alpha, expected, surrogate):
    spikes = encoder(kind="binary", levels=levels, alpha=alpha, surrogate=surrogate)(token())
    assert spikes.values.tolist() == [expected]


@pytest.mark.parametrize("kind", ["clipped_ste", "triangle"])
def test_gradient_of_a_binary_spike_looks_at_the_activation_with_its_sign(kind):
    x = token(requires_grad=True)
    encoder(kind="binary", surrogate=SurrogateSpec(kind))(x).values.sum().backward()
    z = torch.tensor([TOKEN], dtype=torch.float64) / 2.0
    bump = (1.0 - (z - 0.5).abs()).clamp_min(0.0)
    # Within one step of the only threshold, at 1/2.
    slope = bump if kind == "triangle" else ((z - 0.5).abs() <= 1.0).double()
    torch.testing.assert_close(x.grad, slope / 2.0, **CLOSE)


def test_channels_of_a_group_share_an_amplitude():
    spiking = encoder(amplitude="group", group_channels=4, levels=3)
    spiking.amplitude.data.copy_(torch.tensor([2.0, 3.0, 5.0]))
    by_hand = torch.tensor([2.0] * 4 + [3.0] * 4 + [5.0] * 2, dtype=torch.float64)
    assert torch.equal(spiking.channel_amplitude(), by_hand)
    spikes = spiking(token())
    assert torch.equal(spikes.dense(), spikes.values * by_hand)
    spikes.dense().sum().backward()
    assert spiking.amplitude.grad.tolist() == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("surrogate", [SurrogateSpec("triangle"), RECORDED])
def test_asymmetric_amplitudes_are_one_for_each_sign(surrogate):
    spiking = encoder(amplitude="asymmetric", levels=3, surrogate=surrogate)
    spiking.amplitude.data.copy_(torch.tensor([2.0, 0.5]))
    x = token(requires_grad=True)
    dense = spiking(x).dense()
    assert dense.tolist() == [[6.0, -1.0, 2.0] + [0.0] * 7]
    dense.sum().backward()
    assert spiking.amplitude.grad.tolist() == [4.0, -2.0]
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("choices", [{"levels": 0}, {"group_channels": 0}])
def test_nothing_is_encoded_with_less_than_one_level_or_channel(choices):
    with pytest.raises(ValueError, match="must be at least 1"):
        encoder(**choices)


def test_a_stored_alpha_is_a_weight_that_does_not_learn():
    spiking = encoder(store_alpha=True, alpha=0.7)
    assert float(spiking.state_dict()["alpha"]) == pytest.approx(0.7)
    assert not spiking.alpha.requires_grad
    assert torch.equal(spiking(token()).values, encoder(alpha=0.7)(token()).values)
    spiking.alpha.requires_grad_()
    assert not spiking(token()).values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numba_encodes_with_a_stored_alpha_as_with_a_given_one(dtype):
    x = torch.randn(300, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    stored = SpikeEncoder(64, store_alpha=True, alpha=0.75)
    assert stored._compiled_kernel(x) is module._numba_encoder()
    assert all(torch.equal(a, b) for a, b in zip(stored(x)[:1], SpikeEncoder(64, alpha=0.75)(x)[:1], strict=True))


@pytest.mark.parametrize("choices", [{"kind": "binary"}, {"store_alpha": True}, {"membrane": MembraneSpec()}])
def test_what_the_kernels_cannot_express_is_encoded_by_torch(choices):
    assert not takes_triton(LEAST_WORTHWHILE["cuda"], **choices)


WITHOUT_MEMORY = MembraneSpec(beta=0.0)
ANY = {"levels": 2, "scale": "token", "amplitude": "channel", "learn_alpha": True, "alpha": 0.6}


@pytest.mark.parametrize("kind", ["ternary", "binary", "quantized"])
@pytest.mark.parametrize("surrogate", ["clipped_ste", "ste", "atan"])
@pytest.mark.parametrize("detach", [True, False])
def test_a_membrane_that_leaks_all_is_the_encoder_without(kind, surrogate, detach):
    found = []
    for membrane in (None, MembraneSpec(0.0, detach)):
        spiking = encoder(kind=kind, surrogate=SurrogateSpec(surrogate), membrane=membrane, **ANY)
        x = random_tokens(3, 7, 10).requires_grad_()
        dense = spiking(x).dense()
        (dense * random_tokens(3, 7, 10, seed=1)).sum().backward()
        found.append([dense, x.grad, *(part.grad for part in spiking.parameters())])
    assert all(torch.equal(*parts) for parts in zip(*found, strict=True))


def test_a_membrane_adds_up_what_is_too_small_for_a_spike():
    # Each token's step is 2 and its first z 1/4: without a membrane it never spikes.
    x = torch.tensor([0.5, 1.5], dtype=torch.float64).expand(1, 6, 2)
    made = SpikeEncoder(2, amplitude="none", membrane=MembraneSpec(0.875)).double()
    # 1/4, 15/32, then 0.66 fires and leaves -0.34; -0.0477, 0.208, 0.432.
    assert made(x).values[0, :, 0].tolist() == [0, 0, 1, 0, 0, 0]
    assert SpikeEncoder(2, amplitude="none").double()(x).values[..., 0].count_nonzero() == 0


def test_a_membrane_carried_over_a_cut_makes_the_spikes_of_the_whole():
    spiking, x = encoder(membrane=MembraneSpec(), levels=2), random_tokens(3, 9, 10)
    whole = spiking(x)
    first = spiking(x[:, :4])
    second = spiking(x[:, 4:], first.membrane)
    assert torch.equal(torch.cat((first.values, second.values), dim=1), whole.values)
    assert torch.equal(second.membrane, whole.membrane)


@pytest.mark.parametrize("membrane", [WITHOUT_MEMORY, MembraneSpec(0.9)])
@pytest.mark.parametrize("hardness", [0.0, 0.25, 1.0])
def test_a_ramp_blends_the_activation_with_the_spikes_by_which_the_membrane_evolves(hardness, membrane):
    spiking, x = encoder(membrane=membrane, scale="token"), random_tokens(2, 9, 10).requires_grad_()
    hard = spiking(x)
    z = x / hard.token_scale
    spiking.hardness = torch.tensor(hardness)
    found = spiking(x)
    assert torch.equal(found.membrane, hard.membrane)
    torch.testing.assert_close(found.values, z + hardness * (hard.values - z), **CLOSE)
    if hardness in (0.0, 1.0):
        assert torch.equal(found.values, hard.values if hardness else z)
        weights = random_tokens(2, 9, 10, seed=1)
        gradients = [
            torch.autograd.grad((part * weights).sum(), x, retain_graph=True)[0]
            for part in (found.values, hard.values if hardness else z)
        ]
        assert torch.equal(*gradients)


def test_the_recorded_estimator_has_no_membrane():
    with pytest.raises(ValueError, match="give a membrane another surrogate"):
        encoder(surrogate=RECORDED, membrane=MembraneSpec())


COMPILED = """
import torch
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.surrogate import SurrogateSpec

torch.manual_seed(0)
forms = []

def looked_at(graph, given):
    nodes = [node for part in graph.modules() if hasattr(part, "graph") for node in part.graph.nodes]
    forms.append([str(node.target) for node in nodes if node.op.startswith("call_")])
    return graph.forward

for surrogate in ("clipped_ste", "sigmoid"):
    for kind in ("ternary", "binary"):
        encoder = SpikeEncoder(12, learn_alpha=True, scale="token", surrogate=SurrogateSpec(surrogate), kind=kind)
        encoder, found = encoder.double(), []
        x, weights = torch.randn(3, 12, dtype=torch.float64, requires_grad=True), torch.randn(3, 12).double()
        for run in (encoder, torch.compile(encoder, backend="aot_eager"), torch.compile(encoder, backend=looked_at)):
            encoder.zero_grad()
            x.grad = None
            torch.sin(run(x).dense() * weights).sum().backward()
            assert x.grad.any()
            found.append([part.grad.clone() for part in (x, *encoder.parameters()) if part.grad is not None])
        for expected, *compiled in zip(*found, strict=True):
            for gradient in compiled:
                torch.testing.assert_close(gradient, expected)
# torch 2.11 compiles what ends in an operation in place into something without a gradient.
assert len(forms) == 4 and all(len(form) > 5 for form in forms)
assert not [name for form in forms for name in form if name.endswith("_") and not name.endswith("__")], forms
"""


def test_compiled_an_encoder_has_the_gradients_that_it_has_by_itself():
    outcome = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
