"""The rows of metadata.csv: which embeddings exist, of which audio, and their checksums."""

import os
from collections.abc import Iterable
from pathlib import Path

from balr.records import WHOLE, Utterance, format_seconds
from balr.stores.commit_log import CommitLog, Row

METADATA = "metadata.csv"
_OF_SHARDS = "metadata.*-of-*.csv"
COLUMNS = ("id", "audio", "speaker", "embedding", "crc32")
KNOWN_COLUMNS = frozenset((*COLUMNS, "start", "end", "channel", "duration", "duration_seconds"))


def manifests_in(folder: Path) -> list[CommitLog]:
    """Return the manifests of a folder, to read: that of the whole corpus, and those of shards."""
    found = [folder / METADATA, *sorted(folder.glob(_OF_SHARDS))]
    return [CommitLog(path, COLUMNS) for path in found if path.is_file()]


def columns_of(utterances: Iterable[Utterance]) -> Iterable[str]:
    """Return the columns that the rows of these utterances have beyond balr's own."""
    columns: dict[str, None] = {}
    for utterance in utterances:
        if utterance.part is not WHOLE:
            columns |= dict.fromkeys(utterance.part.cells())
        if utterance.duration_seconds is not None:
            columns["duration"] = None
        columns |= dict.fromkeys(utterance.extra)
    return [name for name in columns if name not in COLUMNS]


def row_of(utterance: Utterance, embedding: str, crc32: str) -> Row:
    """Return the row of an utterance whose embedding is stored as `embedding`."""
    known = (utterance.id, str(utterance.audio or ""), utterance.speaker or "", embedding, crc32)
    seconds = utterance.duration_seconds
    duration = {} if seconds is None else {"duration": format_seconds(seconds)}
    return {**utterance.extra, **duration, **utterance.part.cells(), **dict(zip(COLUMNS, known, strict=True))}


def is_of(row: Row, utterance: Utterance) -> bool:
    """Return whether a row is of the audio, and the part of it, that an utterance is."""
    if any(row.get(name, "") != cell for name, cell in utterance.part.cells().items()):
        return False
    path, audio = row["audio"], str(utterance.audio)
    return path == audio or os.path.realpath(path) == os.path.realpath(audio)
