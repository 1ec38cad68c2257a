"""Audio inside of tar and parquet files. A member has a path below its container, such as `train.tar/a/b.flac`.

So a member is an utterance like any other: its id, the name of its embedding and its row in a list come from its path.
"""

import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from balr.data.decoders import OpenAudio, open_audio
from balr.errors import UtteranceError, one_line
from balr.records import WHOLE, Part

Place = tuple[int, int]  # the first byte of a member in a tar, and how many it has

SUFFIXES = (".tar", ".parquet")
_NOT_THERE: Place = (0, -1)  # a link, or a file that is stored with holes
_BLOCK_BYTES = 1 << 20
_ONE_READER = threading.Lock()  # a parquet file is read by one thread at a time


class _InMemory:
    """Bytes that have a path, which the decoders want, as long as this object lives."""

    def __init__(self, content: bytes) -> None:
        is_linux = hasattr(os, "memfd_create")
        self._file: Any = os.fdopen(os.memfd_create("audio"), "wb") if is_linux else NamedTemporaryFile()  # noqa: SIM115
        self.path = Path(f"/proc/self/fd/{self._file.fileno()}" if is_linux else self._file.name)
        self._file.write(content)
        self._file.flush()

    def __del__(self) -> None:
        self._file.close()


def is_container(path: Path) -> bool:
    """Return whether a path is that of a tar or parquet file."""
    return path.suffix.lower() in SUFFIXES


def container_of(path: Path) -> Path | None:
    """Return the container that a path leads into; None where it leads into none."""
    return next((one for one in path.parents if is_container(one) and os.path.isfile(one)), None)


def is_member(path: Path) -> bool:
    """Return whether a path leads to a member of a container, without reading it."""
    container = container_of(path)
    if container is None:
        return False
    name = path.relative_to(container).as_posix()
    try:
        if container.suffix.lower() == ".tar":
            return name in tar_members(container)
        return int(name) in range(parquet_file(container).metadata.num_rows)
    except (OSError, ValueError, tarfile.TarError):
        return False


def open_member(path: Path, part: Part = WHOLE, *, scan: bool = True) -> OpenAudio:
    """Open an audio file, or a member of a container, as `open_audio` does. Raises UtteranceError."""
    container = None if os.path.isfile(path) else container_of(path)
    if container is None:
        return open_audio(path, part, scan=scan)
    name = path.relative_to(container).as_posix()
    try:
        content = _tar_member(container, name) if container.suffix.lower() == ".tar" else _row(container, int(name))
    except (OSError, LookupError, ValueError, tarfile.TarError) as error:
        raise UtteranceError(f"not readable in {container.name}: {one_line(error)[:200]}") from error
    memory = _InMemory(content)
    audio = open_audio(memory.path, part, scan=scan)
    return replace(audio, blocks=_with(memory, audio.blocks))


def _with(memory: _InMemory, blocks: Iterator[Any]) -> Iterator[Any]:
    yield from blocks
    del memory


def _tar_member(container: Path, name: str) -> bytes:
    start, size = tar_members(container)[name]
    if size < 0:
        raise LookupError("a link, or a file stored with holes; write the tar with --dereference")
    with open(container, "rb") as file:
        file.seek(start)
        return file.read(size)


def tar_members(container: Path) -> Mapping[str, Place]:
    """Return where the members of a tar are. Raises OSError or tarfile.TarError, also where some could be lost."""
    return _tar_members(container, container.stat().st_mtime_ns)


@cache  # by each process, as batches mix members of all tars
def _tar_members(container: Path, _changed_ns: int) -> Mapping[str, Place]:
    """Find the members of a tar as it was at a time.

    `tarfile` takes a damaged header for the end, and the end of the first of several joined tars for the end of all.
    """
    found: dict[str, Place] = {}
    with tarfile.open(container, "r:", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            if tar.offset <= member.offset:  # a size below zero would lead back for ever
                raise tarfile.ReadError(f"damaged at byte {member.offset:,}")
            if not member.isdir():
                is_there = member.isfile() and not member.issparse()
                found[os.path.normpath(member.name)] = (member.offset_data, member.size) if is_there else _NOT_THERE
        end = tar.offset
    with open(container, "rb") as file:
        file.seek(end)
        while block := file.read(_BLOCK_BYTES):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"damaged at byte {end:,}, or several tars joined there")
    return found


def _row(container: Path, number: int) -> bytes:
    """Return the audio of a row: bytes, or those of the file that a path names."""
    file = parquet_file(container)
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number < rows:
            break
        number -= rows
    with _ONE_READER:
        audio = _audio_column(file, group)[number].as_py()
    if isinstance(audio, dict):
        audio = audio.get("bytes") or audio.get("path")
    if isinstance(audio, str):
        return (container.parent / audio).read_bytes()
    if not isinstance(audio, bytes):
        raise ValueError("the row holds no audio")
    return audio


def parquet_file(container: Path) -> Any:
    """Open a parquet file. Raises OSError or ValueError."""
    return _parquet_file(container, container.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _parquet_file(container: Path, _changed_ns: int) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(container)


@lru_cache(maxsize=1)
def _audio_column(file: Any, group: int) -> Any:
    return file.read_row_group(group, columns=["audio"])["audio"]
