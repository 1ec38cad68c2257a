"""One file for each embedding, `<stem>_emb.npy` or `.txt`, and metadata.csv, which lists those that exist."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from balr.atomic import write_together
from balr.errors import ConfigError
from balr.records import WHOLE_CORPUS, Embedded, Failure, Shard, Utterance
from balr.stores.embedding_files import checksum, decode, encode, read_content
from balr.stores.folder import folds_case, refuse_foreign_folders
from balr.stores.listed import Listed, ListedStore
from balr.stores.places import embedding_file, refuse_shared_files


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


class FilesStore(ListedStore):
    """Store embeddings as files in the tree of the corpus.

    `beside_audio`: embeddings go beside the audio, where those of earlier runs are found; only the manifest goes to
    `folder`.
    """

    def __init__(
        self,
        folder: Path,
        utterances: Sequence[Utterance],
        *,
        root: Path,
        shard: Shard = WHOLE_CORPUS,
        embedding_dim: int | None = None,
        format: str,
        beside_audio: bool = False,
    ) -> None:
        super().__init__(folder, utterances, shard)
        if format not in ("npy", "txt"):
            raise ConfigError(f"store.format={format}: must be npy or txt.")
        self._suffix = f".{format}"
        self._root, self._output_dir = str(root), None if beside_audio else str(folder)
        self._bytes = len(encode(np.zeros(embedding_dim, np.float32), ".npy")) if embedding_dim else None
        files = [self._file(utterance) for utterance in self.audible]
        refuse_shared_files(self.audible, files, folds_case=folds_case(folder))
        if not beside_audio:
            refuse_foreign_folders(folder, files)

    def _save(self, batch: Sequence[Embedded]) -> tuple[list[tuple[Utterance, Listed]], list[Failure]]:
        written, failures = write_files(batch, self._file)
        return [(utterance, Listed(self._place(utterance), crc32)) for utterance, crc32 in written], failures

    def _accepts(self, utterance: Utterance, place: str) -> bool:
        return place == self._place(utterance)

    def _is_there(self, place: str) -> bool:
        try:
            size = os.path.getsize(os.path.join(self.folder, place))
        except OSError:
            return False
        return size > 0 if self._bytes is None or self._suffix != ".npy" else size == self._bytes

    def _remove(self, listed: Mapping[str, Listed]) -> None:
        for place, _ in listed.values():
            with suppress(OSError):
                os.unlink(os.path.join(self.folder, place))

    def _find(self) -> dict[str, Listed]:
        if self._output_dir is not None:
            return super()._find()
        found = {}
        for utterance in self.audible:
            with suppress(OSError, ValueError):
                content = read_content(self._file(utterance))
                decode(content, self._suffix)
                found[utterance.id] = Listed(self._place(utterance), checksum(content))
        return found

    def _file(self, utterance: Utterance) -> str:
        return embedding_file(utterance, self._suffix, root=self._root, output_dir=self._output_dir)

    def _place(self, utterance: Utterance) -> str:
        return self._file(utterance).removeprefix(os.path.join(self.folder, ""))
