"""A folder that one run at a time writes to; its lock also marks it as the save_dir of a run."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from balr.errors import LockedError, OutputError
from balr.records import WHOLE_CORPUS, Shard

_LOCK = ".balr.lock"
_LOCKS_OF_SHARDS = ".balr.*-of-*.lock"
_SECONDS_FOR_A_KILLED_RUN = 2.0  # its decoder processes hold the lock until they have ended, too
_SECONDS_FOR_A_MERGE = 60.0


@contextmanager
def locked(folder: Path, shard: Shard = WHOLE_CORPUS) -> Iterator[None]:
    """Create a folder and lock it for this run; the lock ends with its process. A new folder goes if it stays empty.

    Shards of one count work side by side. Raises OutputError where the folder cannot be written to, or has another run,
    and at the end where it is another one than at the start.
    """
    lock, is_new = FileLock(folder / f".balr{shard.tag}.lock"), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_SECONDS_FOR_A_KILLED_RUN)
    except Timeout as error:
        raise LockedError(
            f"{folder}: another run works there; wait for its end, or choose another save_dir."
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{folder}: cannot be written to: {reason}; choose another save_dir.") from error
    try:
        _refuse_work_beside(folder, shard)
        path = Path(lock.lock_file)
        at_start = path.stat()
        yield
        if not path.exists() or not os.path.samestat(path.stat(), at_start):
            raise OutputError(f"{folder}: was removed or replaced while the run worked; give the same command again.")
    finally:
        lock.release()  # its file stays: without it a third run could lock a new one beside a second run
        if is_new:
            _remove_if_unused(folder, Path(lock.lock_file))


def _refuse_work_beside(folder: Path, shard: Shard) -> None:
    """Raise OutputError where a run works in a locked folder that is no shard of the same count."""
    same_count = f"-of-{shard.count}.lock" if shard.tag else None
    for path in folder.glob(_LOCKS_OF_SHARDS):
        if same_count is None or not path.name.endswith(same_count):
            _refuse_locked(path, "a run of another shard.count works there")
    if same_count:  # the whole corpus, which may be put together just now
        _refuse_locked(folder / _LOCK, "a run of the whole corpus works there", seconds=_SECONDS_FOR_A_MERGE)


def _refuse_locked(path: Path, reason: str, *, seconds: float = 0) -> None:
    try:
        FileLock(path).acquire(timeout=seconds).lock.release()
    except Timeout as error:
        raise LockedError(f"{path.parent}: {reason}; wait for its end, or choose another save_dir.") from error


def _remove_if_unused(folder: Path, lock: Path) -> None:
    """Remove a folder, and the empty ones above it, where a run wrote nothing into it but its lock."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {lock.name, _LOCK}:
            lock.unlink()
            (folder / _LOCK).unlink(missing_ok=True)
            os.removedirs(folder)


def is_of_a_run(folder: str) -> bool:
    """Return whether a folder is the save_dir of a run."""
    return os.path.lexists(os.path.join(folder, _LOCK))


def folds_case(folder: Path) -> bool:
    """Return whether the file system of a locked folder takes `A` for `a`."""
    return os.path.lexists(folder / _LOCK.upper())


def files_of(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, except those in the folders of other runs."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_of_a_run(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in names)


def refuse_foreign_folders(top: Path, files: Iterable[str]) -> None:
    """Refuse that a folder of these files, below `top`, is a link or another run's. Raises OutputError."""
    seen = {str(top)}
    for file in files:
        folder = os.path.dirname(file)
        while folder not in seen:
            if os.path.islink(folder):
                raise OutputError(
                    f"{folder}: is a link, and embeddings would be written outside of save_dir; remove it, or choose "
                    "another save_dir."
                )
            if is_of_a_run(folder):
                raise OutputError(f"{folder}: is the save_dir of another run; choose another save_dir.")
            seen.add(folder)
            folder = os.path.dirname(folder)
