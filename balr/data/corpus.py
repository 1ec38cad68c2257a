"""`Corpus`: which utterances there are and where the embedding of each goes. Opens no audio and needs no torch.

The invariant kept here: two audio files never share an embedding file, and none lies outside `output_dir`.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from balr.atomic import is_of_a_run
from balr.data.folders import AUDIO_FORMATS, read_dir
from balr.data.places import folded, stored_names
from balr.data.readers import read_csv, read_scp, read_txt
from balr.errors import InputError, OutputError
from balr.records import WHOLE, Utterance
from balr.stores.embedding_files import Vector, flaw_of_vector, read_vector, write_vector, write_vectors


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
        files = [u.audio for u in self.utterances if u.audio is not None]
        self._names = stored_names(files)
        self._tree = _tree(files, self.root_dir)
        self._index: dict[str, int] = {}
        self.set_output_dir(output_dir)
        self._refuse_shared_names()

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        root_dir: str | Path | None = None,
        audio_formats: Sequence[str] = AUDIO_FORMATS,
        channel: int | None = None,
    ) -> Self:
        """Read a folder, a csv, a wav.scp, a list of paths (.txt) or an audio file, told apart by what the path is.

        `channel` (from 0) is taken of each file for which a list chooses none. Raises InputError.
        """
        path = _absolute(path)
        if os.path.isdir(path):  # unlike Path's, it takes a name that is too long for any file
            corpus = cls.from_dir(path, audio_formats=audio_formats)
        elif path.suffix.lower() == ".csv":
            corpus = cls.from_csv(path, root_dir=root_dir)
        elif path.suffix.lower() == ".scp":
            corpus = cls.from_scp(path, root_dir=root_dir)
        elif path.suffix.lower() == ".txt":
            corpus = cls.from_txt(path, root_dir=root_dir)
        else:
            corpus = cls.from_file(path)
        return corpus if channel is None else corpus._on_channel(channel)

    @classmethod
    def from_csv(cls, path: str | Path, *, root_dir: str | Path | None = None) -> Self:
        """Read a csv with a column `audio` or `embedding`; `id`, `speaker` and others are optional. Raises InputError.

        Relative paths start at `root_dir`, or where the csv is.
        """
        path, root = _list_and_root(path, root_dir)
        return cls(read_csv(path, root), root)

    @classmethod
    def from_scp(cls, path: str | Path, *, root_dir: str | Path | None = None) -> Self:
        """Read a Kaldi wav.scp and the `segments` beside it, if any. Raises InputError.

        Relative paths start at `root_dir`, or where the list is.
        """
        path, root = _list_and_root(path, root_dir)
        return cls(read_scp(path, root), root)

    @classmethod
    def from_txt(cls, path: str | Path, *, root_dir: str | Path | None = None) -> Self:
        """Read a list of audio paths, one a line, which are the ids. Raises InputError.

        Relative paths start at `root_dir`, or where the list is.
        """
        path, root = _list_and_root(path, root_dir)
        return cls(read_txt(path, root), root)

    @classmethod
    def from_dir(cls, path: str | Path, *, audio_formats: Sequence[str] = AUDIO_FORMATS) -> Self:
        """Find the audio files below a folder; ids are their relative POSIX paths. Raises InputError."""
        folder = _absolute(path)
        if not folder.is_dir():
            raise InputError(f"{path}: no such folder.")
        return cls(read_dir(folder, audio_formats), folder)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Take one audio file; its name is the id. Raises InputError."""
        file = _existing(path)
        return cls([Utterance(file.name, file)], file.parent)

    def __len__(self) -> int:
        return len(self.utterances)

    def embeddings(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield the id and embedding `(dim,)` of each utterance listed with one, opening no audio."""
        for utterance in self.utterances:
            if utterance.embedding is not None:
                yield utterance.id, read_vector(utterance.embedding)

    def filter(self, keep: Callable[[Utterance], bool]) -> Self:
        """Return a corpus of the utterances that `keep` accepts; their embeddings go to the same places as before."""
        return self._changed(utterances=tuple(u for u in self.utterances if keep(u)), _index={})

    def set_output_dir(self, output_dir: str | Path | None) -> None:
        """Choose the folder for embeddings, in the tree of the corpus; None: beside the audio."""
        self.output_dir = None if output_dir is None else _absolute(output_dir)

    def vector_path(self, utterance: Utterance) -> Path:
        """Return where the embedding of an utterance goes: `<stem>_emb.npy`, or `<name>_emb.npy` where stems collide.

        A segment adds its times, a channel its number: `<stem>_1.5-3.25_ch0_emb.npy`.
        Where some audio lies outside `root_dir`, all keep their whole path below `output_dir`: nothing is written
        outside it and no two files meet.
        """
        return Path(self.vector_file(utterance))

    def vector_file(self, utterance: Utterance) -> str:
        """Return `vector_path` as text, which takes a tenth of the time: there are millions."""
        if utterance.audio is None:
            raise OutputError(f"{utterance.id}: has no audio, so no place for an embedding.")
        folder = os.path.dirname(utterance.audio)
        if self.output_dir is not None:
            folder = f"{self.output_dir}{os.sep}{folder[len(self._tree) :]}".rstrip(os.sep)
        return f"{folder}{os.sep}{self._names[utterance.audio]}{utterance.part.suffix}_emb.{self.vector_format}"

    def vector_flaw(self, utterance: Utterance, *, dim: int | None = None) -> str | None:
        """Say what is wrong with the embedding at an utterance's destination, `missing` at least; None: nothing.

        `dim` is how many numbers it must have, where that is known.
        """
        return flaw_of_vector(self.vector_file(utterance), dim=dim)

    def save_vector(self, id: str, vector: Vector) -> Path:
        """Write the embedding `(dim,)` of an utterance, whole or not at all, and return where. Raises OutputError."""
        path = self._place(id)
        write_vector(path, vector)
        return path

    def save_vectors(self, vectors: Iterable[tuple[str, Vector]]) -> list[Path]:
        """Write (id, embedding) pairs, such as `extract_embeddings` returns. Raises OutputError."""
        return [self.save_vector(*pair) for pair in vectors]

    def save_together(self, vectors: Iterable[tuple[str, Vector]]) -> list[OutputError | None]:
        """Write a few (id, embedding) pairs in one go, which is quicker, and return what kept each from its place."""
        return write_vectors([(self._place(id_), vector) for id_, vector in vectors])

    def _place(self, id: str) -> Path:
        if not self._index:
            self._index = {utterance.id: number for number, utterance in enumerate(self.utterances)}
        if id not in self._index:
            raise OutputError(f"{id}: no such utterance in this dataset.")
        return self.vector_path(self.utterances[self._index[id]])

    def refuse_foreign_folders(self) -> None:
        """Refuse an `output_dir` where a folder for embeddings is a link or another run's. Raises OutputError."""
        if self.output_dir is None:
            return
        seen = {str(self.output_dir)}
        for utterance in self.utterances:
            folder = "" if utterance.audio is None else os.path.dirname(self.vector_file(utterance))
            while folder and folder not in seen:
                if os.path.islink(folder):
                    raise OutputError(
                        f"{folder}: is a link, and embeddings would be written outside of save_dir; remove it, or "
                        "choose another save_dir."
                    )
                if is_of_a_run(folder):
                    raise OutputError(f"{folder}: is the save_dir of another run; choose another save_dir.")
                seen.add(folder)
                folder = os.path.dirname(folder)

    def _on_channel(self, channel: int) -> Self:
        chosen = tuple(
            replace(one, part=replace(one.part, channel=channel)) if one.part.channel is None else one
            for one in self.utterances
        )
        changed = self._changed(utterances=chosen)
        changed._refuse_shared_names()
        return changed

    def _refuse_shared_names(self) -> None:
        """Refuse that a segment would be stored as something else is: `a_0-1.wav` and the first second of `a.wav`."""
        if all(utterance.part is WHOLE for utterance in self.utterances):
            return
        sources: dict[str, Utterance] = {}
        for utterance in self.utterances:
            if utterance.audio is not None:
                first = sources.setdefault(folded(self.vector_file(utterance)), utterance)
                if (first.audio, first.part) != (utterance.audio, utterance.part):
                    raise InputError(
                        f"{first.id!r} and {utterance.id!r} would share the file {self.vector_file(utterance)}: "
                        "rename one of their audio files."
                    )

    def _changed(self, **attributes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other


def _tree(files: Iterable[Path], root_dir: Path) -> str:
    """Return the folder, with its separator, whose tree embeddings are stored in."""
    root = os.path.join(root_dir, "")
    anchor = os.path.join(root_dir.anchor, "")
    return root if all(os.fspath(file).startswith(root) for file in files) else anchor


def _list_and_root(path: str | Path, root_dir: str | Path | None) -> tuple[Path, Path]:
    file = _existing(path)
    root = file.parent if root_dir is None else _absolute(root_dir)
    if not root.is_dir():
        raise InputError(f"root_dir={root_dir}: no such folder.")
    return file, root


def _existing(path: str | Path) -> Path:
    file = _absolute(path)
    if not os.path.isfile(file):
        raise InputError(f"{path}: no such file or folder.")
    return file


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
