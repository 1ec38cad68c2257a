"""One file for each embedding, `<stem>_emb.npy` or `.txt`, and metadata.csv, which lists those that exist.

The invariant kept here: a file is whole and on the disk before its row is appended. Files that no row lists are
overwritten when their turn comes.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.atomic import write_together
from balr.errors import OutputError
from balr.records import Embedded, Failure, Utterance
from balr.stores.commit_log import Row
from balr.stores.embedding_files import checksum, decode, encode, read_content
from balr.stores.folder import folds_case, refuse_foreign_folders
from balr.stores.manifest import columns_of, is_of, manifest_of, row_of
from balr.stores.places import embedding_file, refuse_shared_files

log = logging.getLogger(__name__)


def write_files(
    batch: Sequence[Embedded], file_of: Callable[[Utterance], str]
) -> tuple[list[tuple[Utterance, str]], list[Failure]]:
    """Write a file for each embedding and flush them to disk together.

    Returns the utterances that were written, with checksums, and those whose path cannot be. Raises OutputError where
    nothing more can be written.
    """
    files = [file_of(one.utterance) for one in batch]
    contents = [encode(one.embedding, os.path.splitext(file)[1]) for one, file in zip(batch, files, strict=True)]
    errors = write_together(zip(files, contents, strict=True))
    written, failures = [], []
    for one, content, error in zip(batch, contents, errors, strict=True):
        if error is None:
            written.append((one.utterance, checksum(content)))
        else:
            failures.append(Failure.of(one.utterance, "write", error))
    return written, failures


class FilesStore:
    """Store the embeddings of `utterances`, which lie below `root`, in a folder that the run has locked.

    `beside_audio`: embeddings go beside the audio, where those of earlier runs are found; only the manifest goes to
    `folder`. `embedding_dim` is how many numbers each has, where an earlier run recorded it.
    """

    def __init__(
        self,
        folder: Path,
        utterances: Sequence[Utterance],
        *,
        root: Path,
        format: str = "npy",
        beside_audio: bool = False,
        embedding_dim: int | None = None,
    ) -> None:
        self.folder = folder
        self._suffix = f".{format}"
        self._root, self._output_dir = str(root), None if beside_audio else str(folder)
        self._utterances = utterances
        self._audible = [utterance for utterance in utterances if utterance.audio is not None]
        self._manifest = manifest_of(folder, columns_of(utterances))
        self._bytes = len(encode(np.zeros(embedding_dim, np.float32), ".npy")) if embedding_dim else None
        self._crc32: dict[str, str] | None = None
        self._written: list[Utterance] = []
        files = [self._file(utterance) for utterance in self._audible]
        refuse_shared_files(self._audible, files, folds_case=folds_case(folder))
        if not beside_audio:
            refuse_foreign_folders(folder, files)

    def completed(self) -> Set[str]:
        """Return the ids that the manifest lists and whose files have the right size. Raises OutputError."""
        return self._checksums.keys()

    def clear(self) -> None:
        """Empty the manifest, then remove the files that it listed."""
        listed = [utterance for utterance in self._audible if utterance.id in self._checksums]
        self._crc32 = {}
        self._manifest.begin(())
        for utterance in listed:
            with suppress(OSError):
                os.unlink(self._file(utterance))

    def write(self, batch: Sequence[Embedded]) -> list[Failure]:
        """Write a file for each embedding, then the rows. Raises OutputError where nothing more can be written."""
        if not self._manifest.has_begun:
            self._manifest.begin(self._rows())
        written, failures = write_files(batch, self._file)
        self._manifest.append((self._row(utterance, crc32) for utterance, crc32 in written), durably=True)
        self._checksums.update((utterance.id, crc32) for utterance, crc32 in written)
        self._written += [utterance for utterance, _ in written]
        return failures

    def read(self, ids: Collection[str] | None = None) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield ids and embeddings `(dim,)`. Raises OSError or ValueError where a file is gone or damaged."""
        for utterance in self._audible:
            if utterance.id in self._checksums and (ids is None or utterance.id in ids):
                yield utterance.id, decode(read_content(self._file(utterance)), self._suffix)

    def close(self) -> None:
        """Put the manifest into the order of the corpus. Raises OutputError where files of this run have vanished."""
        self._manifest.check()
        vanished = [utterance.id for utterance in self._written if not os.path.isfile(self._file(utterance))]
        for id_ in vanished:
            self._checksums.pop(id_, None)
        self._manifest.finish(self._rows())
        if vanished:
            raise OutputError(
                f"{self.folder}: {len(vanished)} of {len(self._written)} embeddings vanished while the run worked, "
                f"first {vanished[0]!r}; the same command embeds them again."
            )

    @property
    def _checksums(self) -> dict[str, str]:
        if self._crc32 is None:
            self._crc32 = self._beside_audio() if self._output_dir is None else self._listed()
        return self._crc32

    def _listed(self) -> dict[str, str]:
        found: dict[str, str] = {}
        gone: list[str] = []
        foreign: list[str] = []
        utterances = {utterance.id: utterance for utterance in self._audible}
        for row in self._manifest.read():
            utterance = utterances.get(row["id"])
            if utterance is None:
                foreign += [row["id"]] if row["audio"] else []
            elif row["embedding"] == self._name(utterance) and is_of(row, utterance):
                if self._has_its_size(self._file(utterance)):
                    found[utterance.id] = row["crc32"]
                else:
                    gone.append(utterance.id)
        if foreign:
            raise OutputError(
                f"{self.folder}: holds {len(foreign)} embeddings of utterances that this corpus does not list, first "
                f"{foreign[0]!r}; choose another save_dir, or take them off its list with balr verify SAVE_DIR INPUT "
                "--forget."
            )
        if gone:
            log.warning("%d embeddings are gone or truncated and are made again, first that of %s", len(gone), gone[0])
        return found

    def _beside_audio(self) -> dict[str, str]:
        found = {}
        for utterance in self._audible:
            with suppress(OSError, ValueError):
                content = read_content(self._file(utterance))
                decode(content, self._suffix)
                found[utterance.id] = checksum(content)
        return found

    def _has_its_size(self, file: str) -> bool:
        try:
            size = os.path.getsize(file)
        except OSError:
            return False
        return size > 0 if self._bytes is None or self._suffix != ".npy" else size == self._bytes

    def _file(self, utterance: Utterance) -> str:
        return embedding_file(utterance, self._suffix, root=self._root, output_dir=self._output_dir)

    def _name(self, utterance: Utterance) -> str:
        return self._file(utterance).removeprefix(os.path.join(self.folder, ""))

    def _row(self, utterance: Utterance, crc32: str) -> Row:
        return row_of(utterance, self._name(utterance), crc32)

    def _rows(self) -> Iterator[Row]:
        for utterance in self._utterances:
            if utterance.audio is None:
                yield row_of(utterance, str(utterance.embedding), "")
            elif utterance.id in self._checksums:
                yield self._row(utterance, self._checksums[utterance.id])
