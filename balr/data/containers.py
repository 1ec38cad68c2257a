"""Audio inside of tar and parquet files. A member has a path below its container, such as `train.tar/a/b.flac`.

So a member is an utterance like any other: its id, the name of its embedding and its row in a list come from its path.
"""

import os
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balr.data.decoders import OpenAudio, open_audio
from balr.errors import UtteranceError, one_line
from balr.records import WHOLE, Part

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SUFFIXES = (".tar", ".parquet")
_ONE_READER = threading.Lock()  # a parquet file is read by one thread at a time


class _InMemory:
    """Bytes that have a path, which the decoders want, as long as this object lives."""

    def __init__(self, content: bytes) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("audio")
            self.path = Path(f"/proc/self/fd/{self._file}")
        else:
            self._file, name = tempfile.mkstemp()
            self.path = Path(name)
        with open(self._file, "wb", closefd=False) as file:
            file.write(content)

    def __del__(self) -> None:
        os.close(self._file)
        if not hasattr(os, "memfd_create"):
            self.path.unlink()


def is_container(path: Path) -> bool:
    """Return whether a path is that of a tar or parquet file."""
    return path.suffix.lower() in SUFFIXES


def open_member(path: Path, part: Part = WHOLE) -> OpenAudio:
    """Open an audio file, or a member of a container. Raises UtteranceError."""
    memory = in_memory(path)
    if memory is None:
        return open_audio(path, part)
    audio = open_audio(memory.path, part)
    return replace(audio, blocks=_with(memory, audio.blocks))


def in_memory(path: Path) -> _InMemory | None:
    """Read a member of a container; None if the path is that of a file. Raises UtteranceError."""
    container = next((parent for parent in path.parents if is_container(parent)), None)
    if container is None or os.path.isfile(path) or not os.path.isfile(container):
        return None
    name = path.relative_to(container).as_posix()
    try:
        content = _tar_member(container, name) if container.suffix.lower() == ".tar" else _row(container, int(name))
    except (OSError, LookupError, ValueError, tarfile.TarError) as error:
        raise UtteranceError(f"not readable in {container.name}: {one_line(error)[:200]}") from error
    return _InMemory(content)


def _with(memory: _InMemory, blocks: Iterator[Any]) -> Iterator[Any]:
    yield from blocks
    del memory


def _tar_member(container: Path, name: str) -> bytes:
    offset, size = tar_members(container)[name]
    with open(container, "rb") as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(maxsize=None)  # noqa: UP033  # each is indexed once by a process, as batches mix members of all
def tar_members(container: Path) -> Mapping[str, tuple[int, int]]:
    """Return where each member begins and its size. Raises OSError or tarfile.TarError."""
    with tarfile.open(container, "r:") as archive:
        files = (member for member in archive if member.isfile())
        return {os.path.normpath(member.name): (member.offset_data, member.size) for member in files}


def _row(container: Path, number: int) -> bytes:
    """Return the audio of a row: bytes, or those of the file that a path names."""
    file = parquet_file(container)
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number < rows:
            break
        number -= rows
    with _ONE_READER:
        audio = _audio_column(container, group)[number].as_py()
    if isinstance(audio, dict):
        audio = audio.get("bytes") or audio.get("path")
    if isinstance(audio, str):
        return (container.parent / audio).read_bytes()
    if not isinstance(audio, bytes):
        raise ValueError("the row holds no audio")
    return audio


@lru_cache(maxsize=16)
def parquet_file(container: Path) -> "pq.ParquetFile":
    """Open a parquet file. Raises OSError or ValueError."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(container)


@lru_cache(maxsize=1)
def _audio_column(container: Path, group: int) -> Any:
    return parquet_file(container).read_row_group(group, columns=["audio"])["audio"]
