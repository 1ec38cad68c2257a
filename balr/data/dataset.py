"""`AudioDataset`: a corpus as a torch Dataset, which decodes an utterance when it is asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from balr.data.audio import Cursor, load_waveform
from balr.data.corpus import Corpus
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
    """Load the utterances of a corpus by index, resampled to `sample_rate_hz`; files are opened only then."""

    sample_rate_hz = 16_000

    @cached_property
    def _cursor(self) -> Cursor:
        return Cursor()

    @classmethod
    def of(cls, corpus: Corpus) -> Self:
        """Return a corpus as a dataset."""
        dataset = cls((), corpus.root_dir)
        return dataset._changed(**vars(corpus))

    def __getitem__(self, index: int) -> AnnotatedAudio:
        """Decode one utterance. Raises UtteranceError or InputError where it cannot be read."""
        utterance = self.utterances[index]
        audio, part = utterance.audio, utterance.part
        return AnnotatedAudio(
            id=utterance.id,
            audio=None if audio is None else load_waveform(audio, self.sample_rate_hz, part=part, cursor=self._cursor),
            sample_rate_hz=self.sample_rate_hz,
            audio_path=audio,
            speaker=utterance.speaker,
            embedding=None if utterance.embedding is None else read_embedding(utterance.embedding),
        )
