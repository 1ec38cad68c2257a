"""`Corpus`: which utterances there are and where the embedding of each goes. Opens no audio and needs no torch."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from balr.data.container_readers import read_containers
from balr.data.containers import is_container
from balr.data.folders import AUDIO_FORMATS, read_dir, suffixes_of
from balr.data.kaldi_lists import read_scp
from balr.data.readers import read_csv, read_txt
from balr.errors import InputError, OutputError
from balr.records import Embedded, Embedding, Failure, Utterance
from balr.stores.embedding_files import read_embedding
from balr.stores.files import write_files
from balr.stores.places import embedding_file
from balr.stores.reading import is_store, rows_of, utterance_of

_READERS = {".csv": read_csv, ".scp": read_scp, ".txt": read_txt}


class Corpus:
    """List utterances by index; `root_dir` is their folder.

    `output_dir` is where embeddings go in the same tree (None: beside the audio) and `vector_format` how they are
    written, `npy` or `txt`.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        root_dir: Path,
        *,
        output_dir: str | Path | None = None,
        vector_format: str = "npy",
    ) -> None:
        self.utterances = tuple(utterances)
        self.root_dir = _absolute(root_dir)
        self.vector_format = vector_format
        self.set_output_dir(output_dir)

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        root_dir: str | Path | None = None,
        audio_formats: Sequence[str] = AUDIO_FORMATS,
        channel: int | None = None,
    ) -> Self:
        """Read a folder, a csv, a Kaldi data folder or wav.scp, a .txt of paths, a tar or parquet file, or audio.

        A folder may also hold tar or parquet files, there or in `data/`, or be the store of earlier runs.

        `root_dir` is where relative paths of a list start (None: beside the list), `audio_formats` the suffixes that a
        folder is searched for. `channel` (from 0) is taken of each file for which a list chooses none. Raises
        InputError.
        """
        path = _absolute(path)
        read = _READERS.get(path.suffix.lower())
        if os.path.isdir(path) and is_store(path):
            corpus = cls([utterance_of(path, row) for row in rows_of(path)], path)
        elif os.path.isfile(path / "wav.scp"):
            corpus = cls._from_list(path / "wav.scp", root_dir, read_scp)
        elif os.path.isdir(path):  # unlike Path's, it takes a name that is too long for any file
            corpus = cls.from_dir(path, audio_formats=audio_formats)
        elif is_container(path):
            corpus = cls(read_containers([_existing(path)], audio_formats), path.parent)
        elif read is not None:
            corpus = cls._from_list(path, root_dir, read)
        else:
            corpus = cls([Utterance(path.name, _existing(path))], path.parent)
        return corpus if channel is None else corpus._on_channel(channel)

    @classmethod
    def from_csv(cls, path: str | Path, *, root_dir: str | Path | None = None) -> Self:
        """Read a csv with a column `audio` or `embedding`; `id`, `speaker` and others are optional. Raises InputError.

        Relative paths start at `root_dir`, or where the csv is.
        """
        return cls._from_list(path, root_dir, read_csv)

    @classmethod
    def from_dir(cls, path: str | Path, *, audio_formats: Sequence[str] = AUDIO_FORMATS) -> Self:
        """Find the audio files below a folder, whose ids are relative POSIX paths, or its tar and parquet files.

        Raises InputError.
        """
        folder = _absolute(path)
        if not folder.is_dir():
            raise InputError(f"{path}: no such folder.")
        found = read_dir(folder, audio_formats)
        if found:
            return cls(found, folder)
        containers = [
            one for below in (folder, folder / "data") for one in sorted(below.glob("*")) if is_container(one)
        ]
        if containers:
            return cls(read_containers(containers, audio_formats), folder)
        if any(folder.glob("*.arrow")):
            raise InputError(f"{path}: Arrow files; write them with Dataset.to_parquet, and give those.")
        searched = ", ".join(suffixes_of(audio_formats))
        raise InputError(f"{folder}: no audio files; searched for {searched} (see audio_formats).")

    @classmethod
    def _from_list(
        cls, path: str | Path, root_dir: str | Path | None, read: Callable[[Path, Path], list[Utterance]]
    ) -> Self:
        file = _existing(path)
        root = file.parent if root_dir is None else _absolute(root_dir)
        if not root.is_dir():
            raise InputError(f"root_dir={root_dir}: no such folder.")
        return cls(read(file, root), root)

    def __repr__(self) -> str:
        where = "beside the audio" if self.output_dir is None else str(self.output_dir)
        return f"<{type(self).__name__}: {len(self)} utterances in {self.root_dir}, embeddings {where}>"

    def __len__(self) -> int:
        return len(self.utterances)

    def embeddings(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield the id and embedding `(dim,)` of each utterance listed with one, opening no audio."""
        for utterance in self.utterances:
            if utterance.embedding is not None:
                yield utterance.id, read_embedding(utterance.embedding)

    def filter(self, keep: Callable[[Utterance], bool]) -> Self:
        """Return a corpus of the utterances that `keep` accepts; their embeddings go to the same places as before."""
        return self._changed(utterances=tuple(u for u in self.utterances if keep(u)))

    def windows(self, count: int) -> Iterator[Self]:
        """Yield corpora of so many utterances each, in order; one at least."""
        for start in range(0, max(1, len(self)), count):
            yield self if len(self) <= count else self._changed(utterances=self.utterances[start : start + count])

    def set_output_dir(self, output_dir: str | Path | None) -> None:
        """Choose the folder for embeddings, in the tree of the corpus; None: beside the audio."""
        self.output_dir = None if output_dir is None else _absolute(output_dir)

    def embedding_path(self, utterance: Utterance) -> Path:
        """Return where the embedding of an utterance goes: `<stem>_emb.npy`, in the tree of the corpus.

        A segment adds its times, a channel its number: `<stem>_1.5-3.25_ch0_emb.npy`. Audio outside of `root_dir` keeps
        its whole path below `output_dir`. Raises OutputError where the utterance has no audio.
        """
        if utterance.audio is None:
            raise OutputError(f"{utterance.id}: has no audio, so no place for an embedding.")
        output_dir = None if self.output_dir is None else str(self.output_dir)
        suffix = f".{self.vector_format}"
        return Path(embedding_file(utterance, suffix, root=str(self.root_dir), output_dir=output_dir))

    def save_embeddings(self, embeddings: Iterable[tuple[str, Embedding]]) -> list[Path]:
        """Write (id, embedding) pairs, such as `extract_embeddings` returns, and return where. Raises OutputError."""
        utterances = {utterance.id: utterance for utterance in self.utterances}
        paths = []
        for id_, embedding in embeddings:
            if id_ not in utterances:
                raise OutputError(f"{id_}: no such utterance in this dataset.")
            failures = self.save_batch([Embedded(utterances[id_], embedding, 0.0)])
            if failures:
                raise OutputError(failures[0].reason)
            paths.append(self.embedding_path(utterances[id_]))
        return paths

    def save_batch(self, batch: Sequence[Embedded]) -> list[Failure]:
        """Write embeddings together, which is faster, and return what has no possible place. Raises OutputError."""
        return write_files(batch, lambda utterance: str(self.embedding_path(utterance)))[1]

    def _on_channel(self, channel: int) -> Self:
        return self._changed(
            utterances=tuple(
                replace(one, part=replace(one.part, channel=channel)) if one.part.channel is None else one
                for one in self.utterances
            )
        )

    def _changed(self, **attributes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other


def _existing(path: str | Path) -> Path:
    file = _absolute(path)
    if not os.path.isfile(file):
        raise InputError(f"{path}: no such file or folder.")
    return file


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
