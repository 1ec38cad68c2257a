"""`AudioDataset`: a corpus as a torch Dataset, which decodes an utterance when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from balr.data.audio import Cursor, load_waveform
from balr.data.corpus import Corpus
from balr.records import Part, Utterance
from balr.stores.embedding_files import read_embedding


@dataclass(frozen=True, slots=True)
class AnnotatedAudio:
    """Hold what an utterance's files contain: a float32 waveform `(samples,)` in [-1, 1], an embedding `(dim,)`."""

    id: str
    audio: torch.Tensor | None
    sample_rate_hz: int
    audio_path: Path | None = None
    speaker: str | None = None
    embedding: npt.NDArray[Any] | None = None


class AudioDataset(Corpus, Dataset[AnnotatedAudio]):
    """Load the utterances of a corpus by index; files are opened only then."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        root_dir: Path,
        *,
        sample_rate_hz: int = 16_000,
        output_dir: str | Path | None = None,
        vector_format: str = "npy",
    ) -> None:
        super().__init__(utterances, root_dir, output_dir=output_dir, vector_format=vector_format)
        self.sample_rate_hz = sample_rate_hz
        self._cursor = Cursor()

    @classmethod
    def of(cls, corpus: Corpus) -> Self:
        """Return a corpus as a dataset."""
        dataset = cls((), corpus.root_dir)
        return dataset._changed(**vars(corpus))

    def __getitem__(self, index: int) -> AnnotatedAudio:
        """Decode one utterance. Raises UtteranceError or InputError where it cannot be read."""
        utterance = self.utterances[index]
        return AnnotatedAudio(
            id=utterance.id,
            audio=None if utterance.audio is None else self._waveform(utterance.audio, utterance.part),
            sample_rate_hz=self.sample_rate_hz,
            audio_path=utterance.audio,
            speaker=utterance.speaker,
            embedding=None if utterance.embedding is None else read_embedding(utterance.embedding),
        )

    def _waveform(self, file: Path, part: Part) -> torch.Tensor:
        return load_waveform(file, self.sample_rate_hz, part=part, cursor=self._cursor)
