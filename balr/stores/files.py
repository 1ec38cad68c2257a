"""One file for each embedding, `<stem>_emb.npy` or `.txt`, and metadata.csv, the list of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from balr.atomic import write_together
from balr.errors import ConfigError, InputError
from balr.records import Embedded, Failure, Utterance
from balr.stores.base import StoredCorpus
from balr.stores.embedding_files import checksum, encode, read_content, read_usable
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
    """Store embeddings as files in the tree of the corpus, or beside the audio, where earlier ones are found."""

    def __init__(self, corpus: StoredCorpus, *, format: str) -> None:
        super().__init__(corpus)
        if format not in ("npy", "txt"):
            raise ConfigError(f"store.format={format}: must be npy or txt.")
        self._suffix = f".{format}"
        self._root, self._output_dir = str(corpus.root), None if corpus.is_beside_audio else str(self.folder)
        dim = corpus.embedding_dim
        self._dim, self._bytes = dim, len(encode(np.zeros(dim, np.float32), ".npy")) if dim else None
        files = [self._file(utterance) for utterance in self.audible]
        refuse_shared_files(self.audible, files, folds_case=folds_case(self.folder))
        if not corpus.is_beside_audio:
            refuse_foreign_folders(self.folder, files)

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
            file = self._file(utterance)
            with suppress(OSError, InputError):
                if os.path.isfile(file):
                    embedding, content = read_usable(Path(file)), read_content(file)
                    is_whole = self._dim in (None, embedding.size) and content == encode(embedding, self._suffix)
                    if is_whole:
                        found[utterance.id] = Listed(self._place(utterance), checksum(content))
        return found

    def _file(self, utterance: Utterance) -> str:
        return embedding_file(utterance, self._suffix, root=self._root, output_dir=self._output_dir)

    def _place(self, utterance: Utterance) -> str:
        return self._file(utterance).removeprefix(os.path.join(self.folder, ""))
