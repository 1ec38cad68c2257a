"""`balr verify`: does a folder of embeddings hold what its lists, its record and the corpus say it does?"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from balr.data.corpus import Corpus
from balr.data.vectors import whole_vector
from balr.errors import OutputError
from balr.files import held, is_leftover, write_csv
from balr.lists import COLUMNS, FAILURES, METADATA, is_same_audio, read_failures, read_list
from balr.record import RUN, Record
from balr.report import tracked

Kind = Literal["missing", "extra", "broken", "contradiction"]


@dataclass(frozen=True)
class Finding:
    """Name what is not as it should be: an id or a file, and what is wrong with it."""

    kind: Kind
    what: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Add up a folder; `norms` are the least, the median and the largest of its whole embeddings."""

    listed: int
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
    rows = list(read_list(folder / METADATA, COLUMNS))
    failed = {row["id"]: row["reason"] for row in read_failures(folder)}
    record, findings = _record(folder)
    files = {row["id"]: os.path.join(folder, row["embedding"]) for row in rows}
    dim = None if record is None or record.embedding_dim is None else record.embedding_dim
    norms: list[float] = []
    dims: Counter[int] = Counter()
    for id_, file in tracked(files.items(), "reading embeddings"):
        vector = whole_vector(file, dim=dim)
        norm = 0.0 if isinstance(vector, str) else float(np.linalg.norm(vector))
        if isinstance(vector, str) or norm == 0:
            flaw = vector if isinstance(vector, str) else "all zeros"
            findings.append(Finding("missing" if flaw == "missing" else "broken", id_, f"{file}: {flaw}"))
        else:
            dims[vector.size] += 1
            norms.append(norm)
    if len(dims) > 1:
        findings.append(Finding("contradiction", METADATA, f"embeddings of several sizes: {', '.join(map(str, dims))}"))
    findings += _among_the_lists(rows, failed, record)
    findings += _not_listed(folder, set(map(os.path.normpath, files.values())))
    if corpus is not None:
        findings += _against(corpus, {row["id"]: row["audio"] for row in rows}, failed)
    run = record.runs[-1] if record and record.runs else {}
    return Verdict(
        listed=len(rows),
        whole=len(norms),
        failed=len(failed),
        utterances=None if corpus is None else len(corpus),
        embedding_dim=dim or next(iter(dims), None),
        norms=(min(norms), float(np.median(norms)), max(norms)) if norms else None,
        last_run=f"{run.get('started', '-')}, {run.get('exit') or 'not ended'}" if run else "-",
        findings=tuple(findings),
    )


def repair(folder: Path, verdict: Verdict) -> int:
    """Remove broken embeddings, and from metadata.csv what is not there, so that the next run makes them again.

    Returns how many are to be made again. Raises OutputError where another run holds the folder.
    """
    wrong = {finding.what for finding in verdict.findings if finding.kind in ("missing", "broken")}
    with held(folder):
        rows = list(read_list(folder / METADATA, COLUMNS))
        gone = [row for row in rows if row["id"] in wrong]
        for row in gone:
            path = folder / row["embedding"]
            if row["audio"]:  # without audio, nothing could make it again
                _remove(path)
        kept = [row for row in rows if row["id"] not in wrong]
        extra = dict.fromkeys(name for row in kept for name in row if name not in COLUMNS)
        if gone:
            write_csv(folder / METADATA, [*COLUMNS, *extra], kept)
    return len(gone)


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
    rows: Sequence[Mapping[str, str]], failed: Mapping[str, str], record: Record | None
) -> Iterator[Finding]:
    for id_, count in Counter(row["id"] for row in rows).items():
        if count > 1:
            yield Finding("contradiction", id_, f"{count} lines of {METADATA}")
        if id_ in failed:
            yield Finding("contradiction", id_, f"in {METADATA} and in {FAILURES}")
    counts = record.runs[-1].get("counts") if record else None
    if counts:
        told = counts["total"] - counts["not_reached"]
        if len(rows) + len(failed) < told:
            lost = told - len(rows) - len(failed)
            yield Finding("missing", METADATA, f"{lost} utterances of the last run are neither listed nor failed")


def _not_listed(folder: Path, listed: set[str]) -> Iterator[Finding]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = os.path.join(parent, name)
            if is_leftover(name):
                yield Finding("extra", path, "half-written by a run that was killed; the next one clears it away")
            elif name.endswith(("_emb.npy", "_emb.txt")) and os.path.normpath(path) not in listed:
                yield Finding("extra", path, f"not in {METADATA}")


def _against(corpus: Corpus, listed: Mapping[str, str], failed: Mapping[str, str]) -> Iterator[Finding]:
    ids = set()
    for utterance in corpus.utterances:
        ids.add(utterance.id)
        audio = listed.get(utterance.id)
        if audio is None and utterance.id not in failed:
            yield Finding("missing", utterance.id, "in the corpus, but neither embedded nor failed")
        elif audio and utterance.audio and not is_same_audio(audio, utterance.audio):
            yield Finding("contradiction", utterance.id, f"made of {audio}, in the corpus {utterance.audio}")
    for id_ in listed:
        if id_ not in ids:
            yield Finding("extra", id_, "not in the corpus")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be removed: {error.strerror or error}.") from error
