"""What goes through the pipeline: an utterance, which part of its audio file it is, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from balr.errors import BalrError, ConfigError, one_line

Embedding = npt.NDArray[np.float32]  # (dim,)
Stage = Literal["decode", "embed", "write"]


@dataclass(frozen=True, slots=True)
class Part:
    """Choose a part of an audio file: the time from `start_seconds` to `end_seconds` (None: its end), one channel.

    `channel` counts from 0; None averages all channels.
    """

    start_seconds: float = 0.0
    end_seconds: float | None = None
    channel: int | None = None

    @property
    def is_segment(self) -> bool:
        """Return whether times are given."""
        return self.start_seconds != 0.0 or self.end_seconds is not None

    @property
    def suffix(self) -> str:
        """Return what the part adds to the name of its file, such as `_1.5-3.25_ch0`."""
        times = f"_{format_seconds(self.start_seconds)}-{format_seconds(self.end_seconds)}" if self.is_segment else ""
        return times if self.channel is None else f"{times}_ch{self.channel}"

    def cells(self) -> dict[str, str]:
        """Return the part as the columns of a csv; empty cells mean the whole."""
        return {
            "start": format_seconds(self.start_seconds) if self.is_segment else "",
            "end": "" if self.end_seconds is None else format_seconds(self.end_seconds),
            "channel": "" if self.channel is None else str(self.channel),
        }


WHOLE = Part()
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Utterance:
    """Name an utterance and its files; nothing is opened yet. `extra` holds the other columns of a csv.

    `duration_seconds` is that of the part, where a list gives it.
    """

    id: str
    audio: Path | None
    speaker: str | None = None
    embedding: Path | None = None
    extra: Mapping[str, str] = field(default_factory=lambda: NOTHING)  # one for all: there are millions
    part: Part = WHOLE
    duration_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, from 0, of a corpus that is cut into `count` parts for as many jobs."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            least = f"from 0 to {self.count - 1}" if self.count > 0 else "impossible: shard.count must be 1 or more"
            raise ConfigError(f"shard.index={self.index} of shard.count={self.count}: the index must be {least}.")

    @property
    def tag(self) -> str:
        """Return what the names of its own files carry, such as `.03-of-64`; nothing for the whole corpus."""
        return f".{self.index:0{len(str(self.count))}}-of-{self.count}" if self.count > 1 else ""


WHOLE_CORPUS = Shard()


@dataclass(frozen=True, slots=True)
class Embedded:
    """An utterance with its embedding `(dim,)`."""

    utterance: Utterance
    embedding: Embedding
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """An utterance that got no embedding, and why: a line of failures.csv."""

    id: str
    audio: str
    stage: Stage
    reason: str

    @classmethod
    def of(cls, utterance: Utterance, stage: Stage, error: Exception) -> Self:
        """Return the failure of an utterance that an exception is the reason for."""
        reason = str(error) if isinstance(error, BalrError) else f"{type(error).__name__}: {one_line(error)[:300]}"
        return cls(utterance.id, str(utterance.audio), stage, reason)


Outcome = Embedded | Failure


def format_seconds(seconds: float | None) -> str:
    """Write a time to the microsecond without zeros that say nothing; None, the end of a file, is `end`."""
    return "end" if seconds is None else f"{seconds:.6f}".rstrip("0").rstrip(".")
