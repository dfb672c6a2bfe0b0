"""Where what can be rebuilt is kept, and how a file appears there whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from asnn_goose.errors import GooseError, MachineError

CACHE_VARIABLE = "ASNN_GOOSE_CACHE"
"""Environment variable that names the cache directory."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def cache_directory() -> Path:
    """The directory of everything that can be rebuilt, created if it is missing.

    It is `ASNN_GOOSE_CACHE` if that is set, else the user's cache directory of this system.

    Raises:
        MachineError: It cannot be created or written to.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        directory = Path(named).expanduser().absolute()
    else:
        directory = platformdirs.user_cache_path("asnn-goose", appauthor=False)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(directory, error.strerror) from error
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable(directory, "not writable")
    return directory


def _unusable(directory: Path, reason: str | None) -> MachineError:
    return MachineError(
        f"the cache directory {directory} cannot be used ({reason}); set {CACHE_VARIABLE} to a writable directory"
    )


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give the path of a temporary file that becomes `target` when the block ends without an exception.

    The temporary file lies beside `target`, is flushed to the disk and replaces an older `target` in one
    step. After an exception `target` is as it was before.

    Raises:
        MachineError: The disk is full, or the directory of `target` cannot be written to.
    """
    with writing_to(target):
        temporary = _temporary_file(target)
        try:
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_to_disk(target.parent)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `target` when the block ends without an exception.

    As `atomic_file`, but an older `target` is moved aside first, so that for an instant there is none.

    Raises:
        MachineError: The disk is full, or the directory of `target` cannot be written to.
    """
    with writing_to(target):
        temporary = _temporary_directory(target)
        try:
            yield temporary
            for path in temporary.rglob("*"):
                _flush_to_disk(path)
            _flush_to_disk(temporary)
            _replace_directory(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _flush_to_disk(target.parent)


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turn a full disk into one line that names what was being written.

    Raises:
        MachineError: The block raised the operating system's error for a full disk or quota, or an error
            that was raised from it.
    """
    try:
        yield
    except GooseError:
        raise
    except Exception as error:
        if not _says_disk_full(error):
            raise
        raise MachineError(
            f"disk full while writing {target}; free some space or choose another disk ({CACHE_VARIABLE} for the cache)"
        ) from error


def _says_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        error = error.__cause__
    return False


def _temporary_file(target: Path) -> Path:
    with _created_beside(target):
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp")
    os.close(descriptor)
    # mkstemp lets nobody else read; a file in a shared cache follows the user's umask like any other.
    os.chmod(name, 0o666 & ~_umask())
    return Path(name)


def _temporary_directory(target: Path) -> Path:
    with _created_beside(target):
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp"))
    temporary.chmod(0o777 & ~_umask())
    return temporary


@contextmanager
def _created_beside(target: Path) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise MachineError(
            f"cannot write to {target.parent} ({error.strerror}); choose a writable directory "
            f"({CACHE_VARIABLE} for the cache)"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_to_disk(path: Path) -> None:
    # Windows cannot open a directory, and has no need to: its renames are flushed with the file.
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_directory(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-", suffix=".old") as aside:
        target.rename(Path(aside) / target.name)
        temporary.rename(target)
