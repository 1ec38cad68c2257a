"""The lists of a folder of embeddings: metadata.csv of what there is, failures.csv of what there is not.

The invariant kept here: an embedding is listed with the audio that it was made of. While a run is at work, and after
it was killed, a third list tells of which audio it makes what.
"""

import csv
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, fields
from pathlib import Path

from balr.atomic import remove, write_csv
from balr.data import headers
from balr.data.corpus import Corpus
from balr.errors import Failure, OutputError
from balr.records import WHOLE, Utterance
from balr.runs.record import RUN

METADATA, FAILURES, DURATIONS = "metadata.csv", "failures.csv", "durations.csv"
PLANNED = ".balr.planned.csv"
COLUMNS = ("id", "audio", "speaker", "embedding")
_FAILURE_COLUMNS = tuple(column.name for column in fields(Failure))
_SHARE_OF_TIME = 0.02
_QUICK_SECONDS = 0.003

Row = Mapping[str, str]


def refuse_foreign_lists(folder: Path, source: str) -> None:
    """Refuse to write lists over the very list that is read, or over somebody else's. Raises OutputError."""
    kinds = (
        (METADATA, COLUMNS),
        (PLANNED, COLUMNS),
        (FAILURES, _FAILURE_COLUMNS),
        (DURATIONS, headers.KEY_COLUMNS),
    )
    for name, columns in kinds:
        if os.path.isfile(source) and (folder / name).is_file() and (folder / name).samefile(source):
            raise OutputError(f"{folder / name}: is the input and would be overwritten; choose another save_dir.")
        next(read_list(folder / name, columns), None)


def refuse_names_of_lists(folder: Path, corpus: Corpus) -> None:
    """Refuse a corpus with a folder of the name of a list, which could not stand beside it. Raises OutputError."""
    taken = tuple(os.path.join(folder, name, "") for name in (METADATA, PLANNED, FAILURES, DURATIONS, RUN))
    for utterance in corpus.utterances:
        if utterance.audio is not None and corpus.vector_file(utterance).startswith(taken):
            raise OutputError(
                f"{utterance.audio}: lies in a folder of the name of a list of {folder}; rename the folder, or set "
                "root_dir to a folder above it."
            )


def vouched_for(folder: Path, corpus: Corpus, *, force: bool) -> set[str]:
    """Return the ids whose embedding, where there is one, was made of their audio as the lists of a folder tell it.

    Raises OutputError where an id or an embedding file belongs to other audio, unless all are made again by `force`.
    """
    by_id: dict[str, Row] = {}
    by_file: dict[str, Row] = {}
    for row in known_rows(folder):
        if row["audio"]:
            by_id[row["id"]] = by_file[os.path.join(folder, row["embedding"])] = row
    found = set()
    for utterance in corpus.utterances if by_id else ():
        if utterance.audio is None:
            continue
        place = corpus.vector_file(utterance)
        for listed, what in ((by_id.get(utterance.id), utterance.id), (by_file.get(place), place)):
            if listed and not is_same_source(listed, utterance) and not force:
                raise OutputError(
                    f"{folder}: holds embeddings of another corpus: {what!r} is {source(listed)} there and "
                    f"{utterance.audio}{utterance.part.suffix} here; choose another save_dir, or force=true to embed "
                    "all again."
                )
        if place in by_file and is_same_source(by_file[place], utterance):
            found.add(utterance.id)
    return found


def known_rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of metadata.csv, then those that a run made and could not list, as its end did not come.

    Rows of metadata.csv whose embedding that run replaced by one of other audio are left out.
    """
    planned = list(made_as_planned(folder))
    yield from _not_replaced(read_list(folder / METADATA, COLUMNS), by=planned)
    yield from planned


def _not_replaced(rows: Iterable[Row], *, by: Iterable[Row]) -> Iterator[Row]:
    made_of = {row["embedding"]: row["audio"] for row in by}
    for row in rows:
        audio = made_of.get(row["embedding"], row["audio"])
        if audio == row["audio"] or is_same_audio(audio, Path(row["audio"])):
            yield row


def made_as_planned(folder: Path) -> Iterator[Row]:
    """Yield the rows that a run had planned whose embeddings are there."""
    return (row for row in read_list(folder / PLANNED, COLUMNS) if _is_there(folder, row))


def _is_there(folder: Path, row: Row) -> bool:
    return os.path.isfile(os.path.join(folder, row["embedding"]))


def write_planned(folder: Path, corpus: Corpus, todo: Corpus) -> None:
    """Note of which audio a run is going to make which embedding, beside what another had planned and made.

    What is already in the place of one must be of its audio: after a kill nothing else could tell.
    """
    ids = {utterance.id for utterance in todo.utterances}
    rows: list[Row] = [row for row in made_as_planned(folder) if row["id"] not in ids]
    rows += [_row(utterance, corpus, folder) for utterance in todo.utterances]
    write_rows(folder / PLANNED, rows)


def refuse_to_replace_a_part(folder: Path, corpus: Corpus) -> None:
    """Refuse another model where embeddings of another list would stay beside its own. Raises OutputError."""
    ids = {utterance.id for utterance in corpus.utterances}
    others = [row["id"] for row in known_rows(folder) if row["id"] not in ids]
    if others:
        raise OutputError(
            f"{folder}: holds {len(others)} embeddings of another list, first {others[0]!r}, made with another model, "
            "which force=true would not replace; choose another save_dir."
        )


def write_metadata(folder: Path, corpus: Corpus, done: Collection[str]) -> None:
    """Write metadata.csv of the utterances whose ids are `done`; `AudioDataset.from_csv` reads it back.

    Embeddings are named relative to the folder where they lie below it, audio by its absolute path. What an earlier run
    of another list left in the folder stays listed.
    """
    ids = {utterance.id for utterance in corpus.utterances}
    rows: list[Row] = [_row(utterance, corpus, folder) for utterance in corpus.utterances if utterance.id in done]
    others = {row["id"]: row for row in _not_replaced(known_rows(folder), by=rows) if row["id"] not in ids}
    rows += [row for row in others.values() if _is_there(folder, row)]
    write_rows(folder / METADATA, rows)
    remove(folder / PLANNED)


def write_rows(path: Path, rows: Collection[Row]) -> None:
    """Write rows as metadata.csv has them, with whatever columns they have beyond those of balr."""
    extra = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    write_csv(path, [*COLUMNS, *extra], rows)


class FailureList:
    """Keep failures.csv true while a run goes on, at little cost: a run may be killed at any moment.

    It holds what failed in this run, and what failed in an earlier one, of another list too, and was not embedded
    since; what is in no list any more, and whose audio is gone, is forgotten.
    """

    def __init__(self, folder: Path, corpus: Corpus, done: Collection[str]) -> None:
        self._path = folder / FAILURES
        self._order = {utterance.id: number for number, utterance in enumerate(corpus.utterances)}
        self._done = done
        self._earlier = [
            row for row in read_failures(folder) if row["id"] in self._order or os.path.lexists(row["audio"])
        ]
        self._failures: dict[str, Failure] = {}
        self._is_due = False
        self._next_time = 0.0

    def add(self, failure: Failure) -> None:
        """Take up a failure and write the list, if not a moment ago. Raises OutputError."""
        self._failures[failure.id] = failure
        self._is_due = True
        self.write_if_due()

    def write_if_due(self) -> None:
        """Write the list where failures are not in it yet: at once while that is quick, else in a share of the time."""
        started = time.monotonic()
        if self._is_due and started >= self._next_time:
            self.write()
            ended = time.monotonic()
            took = ended - started
            self._next_time = ended + (took / _SHARE_OF_TIME if took > _QUICK_SECONDS else 0)

    def write(self) -> None:
        """Write the list in the order of the corpus, or remove it where nothing failed. Raises OutputError."""
        self._is_due = False
        rows = [
            dict(zip(_FAILURE_COLUMNS, astuple(failure), strict=True))
            for failure in sorted(self._failures.values(), key=lambda failure: self._order[failure.id])
        ]
        rows += [row for row in self._earlier if row["id"] not in self._failures and row["id"] not in self._done]
        if rows:
            write_csv(self._path, _FAILURE_COLUMNS, rows)
        else:
            remove(self._path)


def read_failures(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of failures.csv, if there is one. Raises OutputError."""
    return read_list(folder / FAILURES, _FAILURE_COLUMNS)


def read_list(path: Path, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a list that balr wrote; a file with other columns is somebody else's. Raises OutputError."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, restval="")
            if list(columns) != list(reader.fieldnames or [])[: len(list(columns))]:
                raise OutputError(f"{path}: was not written by balr and would be overwritten; choose another save_dir.")
            for row in reader:
                row.pop(None, None)
                if any("\0" in row.get(name, "") for name in ("audio", "embedding")):
                    raise OutputError(
                        f"{path}: the path on line {reader.line_num} holds a NUL character; choose another save_dir."
                    )
                yield row
    except csv.Error as error:
        raise OutputError(f"{path}: not a csv: {error}; choose another save_dir.") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _row(utterance: Utterance, corpus: Corpus, folder: Path) -> dict[str, str]:
    vector = str(utterance.embedding) if utterance.audio is None else corpus.vector_file(utterance)
    below = vector.removeprefix(os.path.join(folder, ""))
    known = (utterance.id, str(utterance.audio or ""), utterance.speaker or "", below)
    part = {} if utterance.part == WHOLE else utterance.part.cells()
    return {**part, **utterance.extra, **dict(zip(COLUMNS, known, strict=True))}


def is_same_source(row: Row, utterance: Utterance) -> bool:
    """Return whether a row of a list is of the audio and the part of it that an utterance is."""
    is_same_part = all(row.get(name, "") == cell for name, cell in utterance.part.cells().items())
    return is_same_part and utterance.audio is not None and is_same_audio(row["audio"], utterance.audio)


def source(row: Row) -> str:
    """Name the audio of a row and which part of it is meant."""
    times = f"_{row['start']}-{row.get('end') or 'end'}" if row.get("start") else ""
    return f"{row['audio']}{times}" + (f"_ch{row['channel']}" if row.get("channel") else "")


def is_same_audio(held: str, audio: Path) -> bool:
    """Tell whether the audio of a list is a file, by whatever links each is reached."""
    return held == str(audio) or os.path.realpath(held) == os.path.realpath(audio)
