import pytest
import torch
from torch import nn
from torch.optim import AdamW

from asnn_goose.errors import ConfigError
from asnn_goose.training.sharding import part_groups, placed_like, shard_student, whole_tensor

# float64: sums in another order; Adam divides by roots of squares, of which the smallest keep fewer digits.
ROUNDING = 1e-9
# float32: as above, after a few steps.
SUMMED_ELSEWHERE = 1e-4
MIXERS = ("goose", "wkv")


@pytest.mark.parametrize("mixer", MIXERS)
def test_shards_learn_what_a_whole_student_learns_from_the_rows_of_all_processes(process_pair, mixer):
    for found in process_pair.found(f"shards of {mixer}"):
        differences = {name: value for name, value in found.items() if name.split()[0] in ("align", "distill")}
        assert max(differences.values()) < ROUNDING, differences


@pytest.mark.parametrize("mixer", MIXERS)
def test_each_of_two_processes_holds_half_of_the_large_weights(process_pair, mixer):
    shares = [found["share"] for found in process_pair.found(f"shards of {mixer}")]
    # Norms, scalars and other small weights stay whole, and are not counted here.
    assert all(0.4 < share < 0.5 for share in shares)
    assert sum(shares) < 1.0


@pytest.mark.parametrize("mixer", MIXERS)
def test_shards_survive_a_checkpoint_to_the_bit(process_pair, mixer):
    assert [found["restored"] for found in process_pair.found(f"shards of {mixer}")] == [True, True]


@pytest.mark.parametrize(("sharded", "replicated"), [("sharded", "replicated"), ("staged sharded", "staged")])
def test_a_sharded_student_has_the_losses_of_a_replicated_one(process_pair, sharded, replicated):
    for name in ("loss_nats", "relative_error", "evaluation_perplexity"):
        expected = process_pair.figures(replicated, name)
        assert process_pair.figures(sharded, name) == pytest.approx(expected, rel=SUMMED_ELSEWHERE)


@pytest.mark.parametrize(("sharded", "replicated"), [("sharded", "replicated"), ("staged sharded", "staged")])
def test_a_sharded_run_ends_with_the_results_of_a_replicated_one(process_pair, sharded, replicated):
    found, expected = (process_pair.run(name).read_results() for name in (sharded, replicated))
    assert found.student.perplexity == pytest.approx(expected.student.perplexity, rel=SUMMED_ELSEWHERE)
    assert found.student.parameters == expected.student.parameters
    assert found.spikes.density == pytest.approx(expected.spikes.density, abs=0.01)


class Processes:
    """As much of an accelerator as is asked before anything is shared out."""

    def __init__(self, num_processes, mixed_precision):
        self.num_processes, self.mixed_precision = num_processes, mixed_precision


def test_one_process_has_a_student_to_itself():
    assert shard_student(nn.Linear(2, 2), Processes(1, "no")) is None


def test_a_gradient_scaler_that_does_not_look_across_shards_is_refused():
    with pytest.raises(ConfigError, match=r"training\.precision=bf16"):
        shard_student(nn.Linear(2, 2), Processes(2, "fp16"))


def test_what_is_whole_stays_as_it_is():
    tensor = torch.arange(6.0).view(2, 3)
    assert whole_tensor(tensor) is tensor
    assert torch.equal(placed_like(tensor, torch.zeros(2, 3)), tensor)


def test_groups_of_one_kind_of_weights_keep_their_order_and_options():
    layers = [nn.Linear(2, 2, bias=False) for _ in range(2)]
    optimizer = AdamW([{"params": layers[0].parameters(), "lr": 0.5}, {"params": layers[1].parameters(), "lr": 0.1}])
    part_groups(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert optimizer.param_groups[1]["params"] == [layers[1].weight]
