"""`balr verify`: does a folder of embeddings hold what its lists, its record and the corpus say it does?"""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from balr.atomic import files_of, is_leftover, locked, remove
from balr.data.corpus import Corpus
from balr.errors import InputError, OutputError, one_line
from balr.lists import (
    COLUMNS,
    FAILURES,
    METADATA,
    Row,
    is_same_audio,
    is_same_source,
    known_rows,
    made_as_planned,
    read_failures,
    read_list,
    source,
    write_rows,
)
from balr.runs.progress import tracked
from balr.runs.record import RUN, Record
from balr.stores.embedding_files import MISSING, read_vector, whole_vector

Kind = Literal["missing", "extra", "broken", "unreadable", "contradiction", "unfinished"]


@dataclass(frozen=True)
class Finding:
    """Name what is not as it should be, an utterance by its `id` or something else, and what is wrong with it."""

    kind: Kind
    what: str
    reason: str
    id: str | None = None

    @classmethod
    def of(cls, kind: Kind, id: str, reason: str) -> Self:
        """Return what is wrong with an utterance."""
        return cls(kind, id, reason, id)


@dataclass(frozen=True)
class Verdict:
    """Add up a folder; `norms` are the least, the median and the largest of its whole embeddings.

    `unlisted` are those of a run that did not come to write its list.
    """

    listed: int
    unlisted: int
    whole: int
    failed: int
    utterances: int | None
    embedding_dim: int | None
    norms: tuple[float, float, float] | None
    last_run: str
    findings: tuple[Finding, ...]


def verify(folder: Path, corpus: Corpus | None = None) -> Verdict:
    """Read every embedding of a folder and compare it with the lists, the record and, where given, the corpus.

    Raises OutputError where there is no such folder, or its lists are not balr's.
    """
    if not (folder / METADATA).is_file() and not (folder / RUN).is_file():
        raise OutputError(f"{folder}: holds neither {METADATA} nor {RUN}; give the save_dir of a run.")
    listed = list(read_list(folder / METADATA, COLUMNS))
    rows = {row["id"]: row for row in known_rows(folder)}
    failed = {row["id"]: row["reason"] for row in read_failures(folder)}
    record, findings = _record(folder)
    files = {id_: os.path.join(folder, row["embedding"]) for id_, row in rows.items()}
    norms: dict[str, float] = {}
    dims: dict[str, int] = {}
    for id_, row in tracked(rows.items(), "reading embeddings"):
        vector = _vector(files[id_], row)
        if isinstance(vector, Finding):
            findings.append(vector)
        else:
            norms[id_], dims[id_] = float(np.linalg.norm(vector)), vector.size
    usual = _usual(dims.values(), recorded=None if record is None else record.embedding_dim)
    for id_ in [id_ for id_, dim in dims.items() if dim != usual]:
        findings.append(Finding.of("broken", id_, f"{files[id_]}: {dims[id_]} numbers, not {usual}"))
        del norms[id_]
    if record is not None and None not in (usual, record.embedding_dim) and usual != record.embedding_dim:
        findings.append(Finding("contradiction", RUN, f"embeddings of {record.embedding_dim}, found of {usual}"))
    findings += _among_the_lists(folder, listed, failed, record)
    findings += _not_listed(folder, set(map(os.path.normpath, files.values())))
    if corpus is not None:
        findings += _against(corpus, rows, failed)
    run = record.runs[-1] if record and record.runs else {}
    return Verdict(
        listed=len(listed),
        unlisted=sum(1 for _ in made_as_planned(folder)),
        whole=len(norms),
        failed=len(failed),
        utterances=None if corpus is None else len(corpus),
        embedding_dim=usual,
        norms=(min(norms.values()), float(np.median(list(norms.values()))), max(norms.values())) if norms else None,
        last_run=f"{run.get('started', '-')}, {run.get('exit') or 'not ended'}" if run else "-",
        findings=tuple(findings),
    )


def repair(folder: Path, verdict: Verdict) -> int:
    """Remove broken embeddings, and from metadata.csv what is not there, so that the next run makes them again.

    Only embeddings below the folder are removed, whatever its lists name. Returns how many are to be made again.
    Raises OutputError where another run holds the folder, or where its record cannot vouch for any embedding.
    """
    if any(finding.what == RUN and finding.id is None for finding in verdict.findings):
        raise OutputError(
            f"{folder / RUN}: does not fit the embeddings, which is not repaired; force=true makes all anew."
        )
    wrong = {finding.id for finding in verdict.findings if finding.kind in ("missing", "broken")}
    with locked(folder):
        known = known_rows(folder)
        gone = [row for row in known if row["id"] in wrong and row["audio"] and _is_of(folder, row["embedding"])]
        for row in gone:
            remove(folder / row["embedding"])
        ids = {row["id"] for row in gone}
        rows = list(read_list(folder / METADATA, COLUMNS))
        if any(row["id"] in ids for row in rows):
            write_rows(folder / METADATA, [row for row in rows if row["id"] not in ids])
    return len(ids)


def _vector(file: str, row: Row) -> npt.NDArray[Any] | Finding:
    """Read the embedding of a row, which may be one from elsewhere where there is no audio beside it."""
    try:
        return whole_vector(file) if row["audio"] or not os.path.isfile(file) else read_vector(Path(file))
    except FileNotFoundError:
        return Finding.of("missing", row["id"], f"{file}: {MISSING}")
    except OSError as error:
        return Finding.of("unreadable", row["id"], f"{file}: {error.strerror or error}")
    except (ValueError, InputError) as error:
        return Finding.of("broken", row["id"], f"{file}: {one_line(error)}")


def _is_of(folder: Path, embedding: str) -> bool:
    place = os.path.realpath(os.path.join(folder, os.path.dirname(embedding)))
    inside = os.path.join(os.path.realpath(folder), "")
    return os.path.join(place, "").startswith(inside) and embedding.endswith(("_emb.npy", "_emb.txt"))


def _usual(dims: Collection[int], *, recorded: int | None) -> int | None:
    """Return the size that embeddings should have: the recorded one, or where none has that, the most frequent."""
    return recorded if recorded in dims or not dims else Counter(dims).most_common(1)[0][0]


def _record(folder: Path) -> tuple[Record | None, list[Finding]]:
    try:
        record = Record.of(folder)
    except OutputError as error:
        return None, [Finding("broken", RUN, str(error))]
    if not record.runs:
        return None, [Finding("missing", RUN, f"{folder / RUN}: no record of what made these embeddings")]
    if record.replacing:
        return record, [
            Finding("contradiction", RUN, "a run that was to replace another model's embeddings stopped: two are mixed")
        ]
    return record, []


def _among_the_lists(
    folder: Path, rows: Sequence[Row], failed: Mapping[str, str], record: Record | None
) -> Iterator[Finding]:
    for id_, count in Counter(row["id"] for row in rows).items():
        if count > 1:
            yield Finding.of("contradiction", id_, f"{count} lines of {METADATA}")
        if id_ in failed:
            yield Finding.of("contradiction", id_, f"in {METADATA} and in {FAILURES}")
    made_of: dict[str, Row] = {}
    for row in rows:
        first = made_of.setdefault(row["embedding"], row)
        if row["audio"] and not is_same_audio(first["audio"], Path(row["audio"])):
            yield Finding.of("contradiction", row["id"], f"{folder / row['embedding']}: is that of {first['id']}, too")
    if record is None or not record.runs:
        return
    last = record.runs[-1]
    counts = last.get("counts")
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        yield Finding("unfinished", "last run", str(last.get("exit") or "it is at work, or was killed"))
        return
    not_reached = counts.get("not_reached", 0)
    if not_reached:
        yield Finding("unfinished", "last run", f"{last.get('exit')}; it did not reach {not_reached} utterances")
    lost = counts.get("total", 0) - not_reached - len(rows) - len(failed)
    if lost > 0:
        yield Finding("missing", METADATA, f"{lost} utterances of the last run are neither listed nor failed")


def _not_listed(folder: Path, listed: set[str]) -> Iterator[Finding]:
    for path in sorted(files_of(folder)):
        if is_leftover(path):
            yield Finding("extra", path, "half-written by a run that was killed; the next one clears it away")
        elif path.endswith(("_emb.npy", "_emb.txt")) and os.path.normpath(path) not in listed:
            yield Finding("extra", path, f"not in {METADATA}")


def _against(corpus: Corpus, listed: Mapping[str, Row], failed: Mapping[str, str]) -> Iterator[Finding]:
    ids = set()
    for utterance in corpus.utterances:
        ids.add(utterance.id)
        row = listed.get(utterance.id)
        if row is None:
            if utterance.id not in failed:
                yield Finding.of("missing", utterance.id, "in the corpus, but neither embedded nor failed")
        elif row["audio"] and utterance.audio and not is_same_source(row, utterance):
            here = f"{utterance.audio}{utterance.part.suffix}"
            yield Finding.of("contradiction", utterance.id, f"made of {source(row)}, in the corpus {here}")
    for id_ in (*listed, *(id_ for id_ in failed if id_ not in listed)):
        if id_ not in ids:
            yield Finding.of("extra", id_, "not in the corpus")
