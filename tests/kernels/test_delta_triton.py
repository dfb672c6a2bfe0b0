import importlib
import inspect
import os
import sys

import pytest
import torch

from asnn_goose.errors import MachineError
from asnn_goose.kernels.delta_reference import delta_rule_reference

BATCH, HEADS, KEY, VALUE = 2, 3, 64, 32
LEAST_LOG_DECAY = -0.6065
NAMES = ("receptance", "key", "value", "log_decay", "erase", "write", "initial_state")
# Relative to the norm of the tensor. float32 in three tf32 products keeps 21 bits, over up to 1000 dependent steps;
# bfloat16 keeps 8 bits of each gradient, of the state that is read and of every operand of a product.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


@pytest.fixture
def rule(monkeypatch):
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its delta rule")
    if not torch.cuda.is_available():
        interpret_bfloat16(monkeypatch)
    return importlib.import_module("asnn_goose.kernels.delta_triton").delta_rule_triton


@pytest.fixture(params=["FAST", "SAFE"])
def any_launch(request, rule, monkeypatch):
    """Both ways to compile and launch the kernels, whichever this machine would take."""
    module = importlib.import_module("asnn_goose.kernels.delta_triton")
    monkeypatch.setattr(module, "launch_of", lambda device: getattr(module, request.param))
    for name in ("solve", "carry", "read", "read_backward", "carry_backward", "gradients"):
        # Triton's own key does not see whether wgmma was allowed.
        getattr(getattr(module, f"{name}_kernel"), "device_caches", {}).clear()


def interpret_bfloat16(monkeypatch):
    """Mend Triton's interpreter, which cuts float32 to bfloat16 unrounded and multiplies matrices of its bits."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    language, builder = importlib.import_module("triton.language"), interpreter.InterpreterBuilder
    cast, dot, brain = builder.cast_impl, builder.create_dot, language.bfloat16

    def rounded(self, source, wanted):
        if (source.dtype.scalar, wanted.scalar) != (language.float32, brain):
            return cast(self, source, wanted)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, brain)

    def multiplied(self, left, right, *rest):
        operands = (
            cast(self, part, language.float32) if part.dtype.scalar == brain else part for part in (left, right)
        )
        return dot(self, *operands, *rest)

    monkeypatch.setattr(builder, "cast_impl", rounded)
    monkeypatch.setattr(builder, "create_dot", multiplied)


def inputs(time, group=1, density=1.0, dtype=torch.float32, widths=(KEY, VALUE)):
    """Values that `dtype` holds exactly, in float64."""
    generator = torch.Generator().manual_seed(time)
    key_width, value_width = widths

    def uniform(*shape):
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    spikes = torch.randint(-1, 2, (BATCH, time, HEADS, key_width), generator=generator).double()
    spikes *= uniform(*spikes.shape) < density
    steps = (BATCH, time, HEADS)
    tensors = [
        uniform(*steps, group, key_width) - 0.5, spikes * spikes.square().sum(-1, keepdim=True).clamp_min(1).rsqrt(),
        uniform(*steps, value_width) - 0.5, LEAST_LOG_DECAY * uniform(*steps), uniform(*steps), uniform(*steps),
    ]  # fmt: skip
    state = uniform(BATCH, HEADS, value_width, key_width) - 0.5
    return [*(tensor.to(dtype).double() for tensor in tensors), state.float().double()]


def mask(time):
    valid = torch.rand(BATCH, time, generator=torch.Generator().manual_seed(5)) < 0.7
    valid[0, : time // 2] = False
    return valid


def results(rule, tensors, valid=None, wanted=(True, True)):
    """Values, final state and the gradients through those of the two that are wanted."""
    given = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    outputs = rule(*given, valid)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(part.shape, dtype=torch.float64, generator=generator).to(part) for part in outputs]
    loss = sum((part * weight).sum() for part, weight, want in zip(outputs, weights, wanted, strict=True) if want)
    gradients = torch.autograd.grad(loss, given, materialize_grads=True)
    return dict(zip(("read", "state", *NAMES), (*(part.detach() for part in outputs), *gradients), strict=True))


def assert_near_the_loop(rule, tensors, valid=None, dtype=torch.float32, wanted=(True, True)):
    expected = results(delta_rule_reference, tensors, valid, wanted)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    single = [tensor.to(device, dtype) for tensor in tensors[:-1]] + [tensors[-1].to(device, torch.float32)]
    found = results(rule, single, None if valid is None else valid.to(device), wanted)
    for name, value in expected.items():
        error = (found[name].cpu().double() - value).norm()
        # Where the exact gradient is zero (nothing is found by silent keys), so is this one.
        assert error <= TOLERANCE[dtype] * value.norm(), (name, float(error / value.norm()))


@pytest.mark.parametrize(("time", "group"), [(1, 1), (5, 3), (19, 1), (33, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_of_small_inputs_are_those_of_the_loop(rule, time, group, masked):
    """On the CPU in Triton's interpreter."""
    assert_near_the_loop(rule, inputs(time, group, widths=(16, 16)), mask(time) if masked else None)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_silent_and_dense_keys_of_small_inputs_are_those_of_the_loop(rule, density):
    assert_near_the_loop(rule, inputs(20, density=density, widths=(16, 32)))


@pytest.mark.parametrize(("time", "group"), [(1, 1), (19, 3), (66, 1), (20, 6)])
def test_small_bfloat16_inputs_cost_no_more_than_their_rounding(rule, time, group):
    given = inputs(time, group, dtype=torch.bfloat16, widths=(16, 32))
    assert_near_the_loop(rule, given, mask(time), dtype=torch.bfloat16)


@pytest.mark.usefixtures("any_launch")
def test_members_are_read_together_or_one_by_one(rule):
    given = inputs(19, 3, dtype=torch.bfloat16, widths=(16, 32))
    assert_near_the_loop(rule, given, mask(19), dtype=torch.bfloat16)


def as_given(tensors, dtype, device="cpu"):
    """Receptance, key and value in a dtype, the rest in float32."""
    return [tensor.to(device, dtype if place < 3 else torch.float32) for place, tensor in enumerate(tensors)]


def test_a_tile_turned_is_the_tile_loaded_transposed(rule, monkeypatch):
    module = importlib.import_module("asnn_goose.kernels.delta_triton")
    given = as_given(inputs(19, 3, dtype=torch.bfloat16, widths=(16, 32)), torch.bfloat16)
    turned = results(rule, given)
    monkeypatch.setattr(module, "TURN", False)
    for name, expected in results(rule, given).items():
        assert torch.equal(turned[name], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_is_registered_with_the_shapes_and_dtypes_it_returns(rule, dtype):
    given = as_given(inputs(19, 3, widths=(16, 32)), dtype)
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    operator = torch.ops.asnn_goose.delta_rule.default
    torch.library.opcheck(operator, tuple(tensor.requires_grad_() for tensor in given), test_utils=checks)
    read, state, *_ = operator(*given)
    assert (read.dtype, state.dtype) == (dtype, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("time", [1, 7, 63, 100, 257, 1000])
@pytest.mark.parametrize("group", [1, 3])
def test_values_and_gradients_are_those_of_the_loop_at_any_length(rule, time, group):
    assert_near_the_loop(rule, inputs(time, group))


@pytest.mark.usefixtures("any_launch")
@pytest.mark.gpu
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_the_loop_at_any_density_and_mask(rule, density, masked):
    assert_near_the_loop(rule, inputs(150, density=density), mask(150) if masked else None)


@pytest.mark.usefixtures("any_launch")
@pytest.mark.gpu
@pytest.mark.parametrize("widths", [(16, 16), (32, 64), (64, 64), (128, 128), (16, 128)])
def test_values_and_gradients_are_those_of_the_loop_at_any_width(rule, widths):
    assert_near_the_loop(rule, inputs(100, widths=widths))


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_each_result_alone_has_its_gradients(rule, wanted):
    assert_near_the_loop(rule, inputs(100), wanted=wanted)


@pytest.mark.usefixtures("any_launch")
@pytest.mark.gpu
@pytest.mark.parametrize("time", [7, 257])
@pytest.mark.parametrize("group", [1, 3, 6])
def test_bfloat16_inputs_cost_no_more_than_their_rounding(rule, time, group):
    assert_near_the_loop(rule, inputs(time, group, dtype=torch.bfloat16), dtype=torch.bfloat16)


@pytest.mark.usefixtures("any_launch")
@pytest.mark.gpu
@pytest.mark.parametrize("widths", [(16, 16), (32, 64), (64, 64), (128, 128), (16, 128)])
def test_bfloat16_inputs_of_any_width_cost_no_more_than_their_rounding(rule, widths):
    assert_near_the_loop(rule, inputs(100, 3, dtype=torch.bfloat16, widths=widths), dtype=torch.bfloat16)


@pytest.mark.gpu
def test_one_key_repeated_without_decay_keeps_its_precision(rule):
    """The hardest system to invert: every pair of steps of a chunk depends on each other in full."""
    tensors = inputs(300)
    tensors[1] = tensors[1][:, :1].expand_as(tensors[1])
    tensors[3], tensors[4] = torch.zeros_like(tensors[3]), torch.ones_like(tensors[4])
    assert_near_the_loop(rule, tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("cut", [1, 63, 64, 100])
def test_a_sequence_cut_in_two_with_the_state_carried_is_the_whole(rule, cut):
    given = [tensor.to("cuda", torch.float32) for tensor in inputs(150)]
    whole, last = rule(*given, None)
    first, state = rule(*(tensor[:, :cut] for tensor in given[:-1]), given[-1], None)
    second, end = rule(*(tensor[:, cut:] for tensor in given[:-1]), state, None)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_any_strides_give_what_dense_inputs_give(rule):
    given = [tensor.to("cuda", torch.float32) for tensor in inputs(100, group=3)]
    strided = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in given]
    for found, expected in zip(results(rule, strided).values(), results(rule, given).values(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_call_is_one_operator_with_the_same_gradients(rule, dtype):
    given = as_given(inputs(100), dtype, "cuda")
    # Without the shape checks of the test run, which the compiler cannot trace.
    compiled = torch.compile(inspect.unwrap(rule), backend="aot_eager", fullgraph=True, dynamic=False)
    for found, expected in zip(results(compiled, given).values(), results(rule, given).values(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.gpu
def test_a_width_or_dtype_without_a_kernel_is_refused(rule):
    narrow = [tensor.to("cuda", torch.float32) for tensor in inputs(3, widths=(24, 32))]
    with pytest.raises(ValueError, match=r"key widths \(16, 32, 64, 128\), got 24"):
        rule(*narrow, None)
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        rule(*inputs(3), None)


def test_a_machine_without_triton_is_told_what_to_use_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("delta_triton", "delta_triton_kernels", "delta_triton_kernels_backward"):
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{name}", raising=False)
    with pytest.raises(MachineError, match=r"needs triton.*choose the torch backend"):
        importlib.import_module("asnn_goose.kernels.delta_triton")


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [("3.6.0", (9, 0), "FAST"), ("3.7.1", (9, 0), "SAFE"), ("3.6.0", (8, 0), "SAFE")],
)
@pytest.mark.usefixtures("rule")
def test_settings_serve_where_they_were_verified(version, capability, expected, monkeypatch):
    module = importlib.import_module("asnn_goose.kernels.delta_triton")
    monkeypatch.setattr(module, "VERSION", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert module.launch_of.__wrapped__(torch.device("cuda", 0)) is getattr(module, expected)


@pytest.mark.usefixtures("rule")
def test_wgmma_is_switched_off_for_as_long_as_kernels_are_launched(monkeypatch):
    module = importlib.import_module("asnn_goose.kernels.delta_triton")
    for before in (None, "0"):
        monkeypatch.delenv(module.NO_WGMMA, raising=False)
        if before is not None:
            monkeypatch.setenv(module.NO_WGMMA, before)
        with module._matrix_instructions(wgmma=False):
            assert os.environ[module.NO_WGMMA] == "1"
        with module._matrix_instructions(wgmma=True):
            assert os.environ.get(module.NO_WGMMA) == before
        assert os.environ.get(module.NO_WGMMA) == before
