import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from asnn_goose.data.tokens import TokenRows
from asnn_goose.errors import MachineError
from asnn_goose.evaluation.perplexity import EvaluationWindows
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.training.distill import RunOutcome
from asnn_goose.training.finish import export_model, spike_amplitudes, spike_result

TINY = GooseConfig(vocab_size=11, hidden_size=4, num_hidden_layers=2, max_position_embeddings=8)


class FullDisk:
    """A tokenizer whose saving meets a full disk."""

    def save_pretrained(self, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_export_that_fails_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="--resume"):
        export_model(GooseForCausalLM(TINY), FullDisk(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_amplitudes_are_told_by_layer_and_site() -> None:
    assert spike_amplitudes(GooseForCausalLM(TINY)) == {f"layer_{i}": {"k": 1.0, "v": 1.0} for i in range(2)}


def test_amplitudes_of_the_head_stand_behind_the_blocks() -> None:
    spikes = {"sites": ["ffn_mid", "head_in"]}
    found = spike_amplitudes(GooseForCausalLM(GooseConfig(**{**TINY.to_diff_dict(), "spikes": spikes})))
    assert found == {"layer_0": {"ffn_mid": 1.0}, "layer_1": {"ffn_mid": 1.0}, "layer_2": {"head_in": 1.0}}


def test_the_measured_share_counts_learned_amplitudes_as_folded_and_leaves_the_student_alone() -> None:
    spikes = {"sites": "all+head", "amplitude": "channel"}
    student = GooseForCausalLM(GooseConfig(**{**TINY.to_diff_dict(), "spikes": spikes}))
    for encoder in site_encoders(student).values():
        torch.nn.init.constant_(encoder.amplitude, 0.7)
    windows = EvaluationWindows(TokenRows(np.arange(64) % 11, window=8, stride=8), "standard", "")
    material = SimpleNamespace(student=student, windows=windows)
    found = spike_result(SimpleNamespace(material=material, accelerator=Accelerator(cpu=True)), [])
    assert found.measured_spike_fed_mac_share == pytest.approx(found.spike_fed_mac_share, abs=1e-12)
    assert found.measured_spike_fed_mac_share > 0.5
    assert {round(entry.amplitude, 6) for entry in found.layers} == {0.7}
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_a_run_with_spikes_at_key_and_value_measures_that_no_layer_reads_them(finished_run: RunOutcome) -> None:
    results = finished_run.results
    assert (results.spikes.measured_spike_fed_mac_share, results.spikes.additions_per_token) == (0.0, 0.0)
    assert next(check.passed for check in results.checks if "spike-fed share" in check.name)


def test_a_finished_run_tells_density_history_and_statistics_of_every_site(finished_run: RunOutcome) -> None:
    layers = finished_run.results.spikes.layers
    assert [(entry.layer, entry.site) for entry in layers] == [(0, "k"), (0, "v"), (1, "k"), (1, "v")]
    assert all(0.0 < entry.density < 1.0 and len(entry.history.steps) == 6 for entry in layers)


def test_figure_and_report_are_whole_files(finished_run: RunOutcome) -> None:
    folder = finished_run.folder
    assert (folder.figures / "training.png").read_bytes().startswith(b"\x89PNG")
    assert folder.report_path.read_text().rstrip().endswith("</html>")


def test_results_survive_the_way_to_disk_and_back(finished_run: RunOutcome, tmp_path: Path) -> None:
    shutil.copytree(finished_run.folder.path, tmp_path / "copy")
    assert finished_run.folder.read_results() == finished_run.results
