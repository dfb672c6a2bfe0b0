"""What a run ran on, gathered without torch: a number without its environment is not a result."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil

PACKAGES = (
    "asnn-goose",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "numba",
    "triton",
    "fla-core",
    "peft",
    "pydantic",
)
"""Packages whose version can change a result; one that is not installed is left out."""

COMMAND_SECONDS = 2.0
"""Longest time that a question to another program may take."""


def collect_environment(seed: int) -> dict[str, Any]:
    """Versions, machine, git hash, command line and the run's seed, ready for environment.json.

    The caller adds what only torch knows: threads, device names.
    """
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "command_line": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "platform_kind": platform_kind(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu_model": cpu_model(),
        "cpu_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "git_hash": _answer("git", "rev-parse", "HEAD"),
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def platform_kind() -> Literal["kaggle", "colab", "local"]:
    """Which notebook service this process runs on, by the variables the services set."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system gives it, else its architecture."""
    if sys.platform == "darwin":
        return _answer("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _answer(*command: str) -> str | None:
    """What a command prints; None where it is missing, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
