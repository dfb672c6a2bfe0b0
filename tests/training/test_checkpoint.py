import errno
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim import AdamW

from asnn_goose.errors import CheckpointError, MachineError
from asnn_goose.training import checkpoint as checkpoint_module
from asnn_goose.training.checkpoint import (
    STATE,
    TENSORS,
    RunState,
    load_checkpoint,
    restore_tensors,
    save_checkpoint,
    training_tensors,
)

STATE_AT_7 = RunState(
    step=7, attempts=8, stage=1, stage_start=2, rows_seen=64, tokens=512, skipped=1, roll_backs=0, best_perplexity=3.5,
    best_step=5, stopping_perplexity=None, stopping_step=None, seconds=1.25, precision="fp32", threads=2,
    recipe_hash="abc",
)  # fmt: skip


def trained_pair(steps: int) -> tuple[nn.Linear, AdamW]:
    """A layer and its optimizer after some steps on fixed data."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    optimizer = AdamW(layer.parameters(), lr=0.1, fused=True)
    train(layer, optimizer, steps)
    return layer, optimizer


def train(layer: nn.Linear, optimizer: AdamW, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()


def test_a_restored_pair_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    layer, optimizer = trained_pair(3)
    save_checkpoint(tmp_path / "last", STATE_AT_7, training_tensors(layer, optimizer))
    train(layer, optimizer, 4)
    again, fresh = nn.Linear(5, 3), None
    fresh = AdamW(again.parameters(), lr=0.1, fused=True)
    restore_tensors(load_checkpoint(tmp_path / "last").tensors, again, fresh)
    train(again, fresh, 4)
    assert torch.equal(again.weight, layer.weight)


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", STATE_AT_7, training_tensors(*trained_pair(1)))
    assert load_checkpoint(tmp_path / "last").state == STATE_AT_7


def test_the_checkpoint_before_stays_as_previous(tmp_path: Path) -> None:
    tensors = training_tensors(*trained_pair(1))
    save_checkpoint(tmp_path / "last", STATE_AT_7, tensors)
    save_checkpoint(tmp_path / "last", replace(STATE_AT_7, step=9), tensors)
    assert load_checkpoint(tmp_path / "last").state.step == 9
    assert load_checkpoint(tmp_path / "previous").state.step == 7


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", STATE_AT_7, training_tensors(*trained_pair(1)))
    path = tmp_path / "last" / TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("damage", ["", "{", '{"format": 99, "sha256": "", "state": {}}', "[]"])
def test_a_damaged_state_file_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path / "last", STATE_AT_7, training_tensors(*trained_pair(1)))
    (tmp_path / "last" / STATE).write_text(damage)
    with pytest.raises(CheckpointError, match="last"):
        load_checkpoint(tmp_path / "last")


def test_a_missing_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "last")


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = training_tensors(*trained_pair(1))
    save_checkpoint(tmp_path / "last", STATE_AT_7, tensors)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(MachineError, match="No space left"):
        save_checkpoint(tmp_path / "last", replace(STATE_AT_7, step=9), tensors)
    assert load_checkpoint(tmp_path / "last").state.step == 7
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_weight_of_another_shape_is_refused() -> None:
    tensors = training_tensors(nn.Linear(5, 4), None)
    with pytest.raises(CheckpointError, match="weight"):
        restore_tensors(tensors, nn.Linear(5, 3), None)


def test_without_an_optimizer_only_weights_are_kept() -> None:
    assert set(training_tensors(nn.Linear(5, 3), None)) == {"weight.weight", "weight.bias"}


def test_tensors_are_readable_by_safetensors_alone(tmp_path: Path) -> None:
    layer, optimizer = trained_pair(2)
    save_checkpoint(tmp_path / "last", STATE_AT_7, training_tensors(layer, optimizer))
    stored = safetensors.torch.load_file(tmp_path / "last" / TENSORS)
    assert torch.equal(stored["adam.exp_avg.weight"], optimizer.state[layer.weight]["exp_avg"])
