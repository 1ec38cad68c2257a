"""`AudioDataset`: a corpus as a torch Dataset, which also knows where each utterance's embedding goes.

The invariant kept here: two audio files never share an embedding file, and none lies outside `output_dir`.
"""

import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from balr.data.audio import load_waveform
from balr.data.readers import AUDIO_FORMATS, Utterance, read_csv, read_dir, read_scp
from balr.data.vectors import flaw_of_vector, read_vector, write_vector
from balr.errors import InputError, OutputError


@dataclass(frozen=True, slots=True)
class AnnotatedAudio:
    """Hold what an utterance's files contain: a float32 waveform `(samples,)` in [-1, 1], an embedding `(dim,)`."""

    id: str
    audio: torch.Tensor | None
    sample_rate_hz: int
    audio_path: Path | None = None
    speaker: str | None = None
    embedding: npt.NDArray[Any] | None = None


class AudioDataset(Dataset[AnnotatedAudio]):
    """Load utterances by index; files are opened only then.

    `root_dir` is the corpus folder, `output_dir` where embeddings go in the same tree (None: beside the audio) and
    `vector_format` how they are written, `npy` or `txt`.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        root_dir: Path,
        *,
        sample_rate_hz: int = 16_000,
        output_dir: str | Path | None = None,
        vector_format: str = "npy",
    ) -> None:
        self.utterances = tuple(utterances)
        self.root_dir = _absolute(root_dir)
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_seconds = math.inf
        self.vector_format = vector_format
        files = [u.audio for u in self.utterances if u.audio is not None]
        self._names = _vector_names(files)
        self._tree = _tree(files, self.root_dir)
        self._index: dict[str, int] = {}
        self.set_output_dir(output_dir)

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        root_dir: str | Path | None = None,
        audio_formats: Sequence[str] = AUDIO_FORMATS,
    ) -> Self:
        """Read a folder, a csv, a wav.scp or a single audio file, told apart by what the path is. Raises InputError."""
        path = _absolute(path)
        if os.path.isdir(path):  # unlike Path's, it takes a name that is too long for any file
            return cls.from_dir(path, audio_formats=audio_formats)
        if path.suffix.lower() == ".csv":
            return cls.from_csv(path, root_dir=root_dir)
        if path.suffix.lower() == ".scp":
            return cls.from_scp(path, root_dir=root_dir)
        return cls.from_file(path)

    @classmethod
    def from_csv(cls, path: str | Path, *, root_dir: str | Path | None = None) -> Self:
        """Read a csv with a column `audio` or `embedding`; `id`, `speaker` and others are optional. Raises InputError.

        Relative paths start at `root_dir`, or where the csv is.
        """
        path, root = _list_and_root(path, root_dir)
        return cls(read_csv(path, root), root)

    @classmethod
    def from_scp(cls, path: str | Path, *, root_dir: str | Path | None = None) -> Self:
        """Read a Kaldi wav.scp. Relative paths start at `root_dir`, or where the list is. Raises InputError."""
        path, root = _list_and_root(path, root_dir)
        return cls(read_scp(path, root), root)

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

    def __getitem__(self, index: int) -> AnnotatedAudio:
        """Decode one utterance. Raises UtteranceError where its audio, InputError where its vector cannot be read."""
        utterance = self.utterances[index]
        return AnnotatedAudio(
            id=utterance.id,
            audio=None if utterance.audio is None else self._waveform(utterance.audio),
            sample_rate_hz=self.sample_rate_hz,
            audio_path=utterance.audio,
            speaker=utterance.speaker,
            embedding=None if utterance.embedding is None else read_vector(utterance.embedding),
        )

    def embeddings(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield the id and embedding `(dim,)` of each utterance listed with one, opening no audio."""
        for utterance in self.utterances:
            if utterance.embedding is not None:
                yield utterance.id, read_vector(utterance.embedding)

    def filter(self, keep: Callable[[Utterance], bool]) -> Self:
        """Return a dataset of the utterances that `keep` accepts; their embeddings go to the same places as before."""
        return self._changed(utterances=tuple(u for u in self.utterances if keep(u)), _index={})

    def at_rate(self, sample_rate_hz: int, *, max_audio_seconds: float = math.inf) -> Self:
        """Return the same dataset, resampled to another rate when an utterance is loaded, and refused where longer."""
        return self._changed(sample_rate_hz=sample_rate_hz, max_audio_seconds=max_audio_seconds)

    def set_output_dir(self, output_dir: str | Path | None) -> None:
        """Choose the folder for embeddings, in the tree of the corpus; None: beside the audio."""
        self.output_dir = None if output_dir is None else _absolute(output_dir)

    def vector_path(self, utterance: Utterance) -> Path:
        """Return where the embedding of an utterance goes: `<stem>_emb.npy`, or `<name>_emb.npy` where stems collide.

        Where some audio lies outside `root_dir`, all keep their whole path below `output_dir`: nothing is written
        outside it and no two files meet.
        """
        if utterance.audio is None:
            raise OutputError(f"{utterance.id}: has no audio, so no place for an embedding.")
        folder, name = utterance.audio.parent, f"{self._names[utterance.audio]}_emb.{self.vector_format}"
        if self.output_dir is None:
            return folder / name
        return self.output_dir / folder.relative_to(self._tree) / name

    def has_vector(self, utterance: Utterance) -> bool:
        """Tell whether the embedding of an utterance is at its destination, whole and finite."""
        return utterance.audio is not None and self.vector_flaw(utterance) is None

    def vector_flaw(self, utterance: Utterance) -> str | None:
        """Say what is wrong with the embedding at an utterance's destination, `missing` at least; None: nothing."""
        return flaw_of_vector(self.vector_path(utterance))

    def save_vector(self, id: str, vector: npt.NDArray[np.float32]) -> Path:
        """Write the embedding `(dim,)` of an utterance, whole or not at all, and return where. Raises OutputError."""
        if not self._index:
            self._index = {utterance.id: number for number, utterance in enumerate(self.utterances)}
        if id not in self._index:
            raise OutputError(f"{id}: no such utterance in this dataset.")
        path = self.vector_path(self.utterances[self._index[id]])
        write_vector(path, vector)
        return path

    def save_vectors(self, vectors: Iterable[tuple[str, npt.NDArray[np.float32]]]) -> list[Path]:
        """Write (id, embedding) pairs, such as `extract_embeddings` returns."""
        return [self.save_vector(*pair) for pair in vectors]

    def _waveform(self, file: Path) -> torch.Tensor:
        return load_waveform(file, self.sample_rate_hz, max_seconds=self.max_audio_seconds)

    def _changed(self, **attributes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other


def _vector_names(files: Iterable[Path]) -> dict[Path, str]:
    """Name embeddings after the stem of their audio, or the whole file name where another file has that name too."""
    names = {file: file.stem for file in files}
    while True:
        taken = Counter((file.parent, name) for file, name in names.items())
        clashing = [f for f, name in names.items() if name != f.name and taken[f.parent, name] > 1]
        if not clashing:
            return names
        names.update((file, file.name) for file in clashing)


def _tree(files: Iterable[Path], root_dir: Path) -> Path:
    return root_dir if all(file.is_relative_to(root_dir) for file in files) else Path(root_dir.anchor)


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
