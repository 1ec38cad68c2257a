"""`balr verify`: does a folder of embeddings hold what its manifest, its record and the corpus say it does?"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from balr.data.corpus import Corpus
from balr.errors import OutputError, one_line
from balr.records import Utterance
from balr.runs.failures import FAILURES, read_failures
from balr.runs.record import RUN, Facts, Record
from balr.runs.summary import as_text
from balr.stores.ark import is_in_ark
from balr.stores.commit_log import Row
from balr.stores.folder import files_of, locked
from balr.stores.manifest import METADATA, is_of, manifests_in
from balr.stores.places import embedding_file
from balr.stores.reading import has_parts, is_store, stored

Kind = Literal["missing", "extra", "broken", "contradiction", "unfinished"]


@dataclass(frozen=True)
class Finding:
    """What is wrong, and with what: an utterance by its id, a file, or a list; `in_manifest`: by its row."""

    kind: Kind
    what: str
    reason: str
    in_manifest: bool = False


@dataclass(frozen=True)
class Verdict:
    """A folder added up; `norms` are the least, the median and the largest of its whole embeddings."""

    listed: int
    whole: int
    failed: int
    utterances: int | None
    embedding_dim: int | None
    norms: tuple[float, float, float] | None
    last_run: str
    findings: tuple[Finding, ...]

    def as_text(self, *, most_of_a_kind: int | None = None) -> str:
        """Render the counts, then all findings, or the first few of each kind."""
        rows = [(f"in {METADATA}", f"{self.listed:,}"), ("  whole", f"{self.whole:,}")]
        if self.norms:
            least, median, most = (f"{norm:.3g}" for norm in self.norms)
            rows += [("  each of", f"{self.embedding_dim} numbers, norm {least} to {most}, median {median}")]
        rows += [(f"in {FAILURES}", f"{self.failed:,}")]
        rows += [] if self.utterances is None else [("in the corpus", f"{self.utterances:,}")]
        lines = [as_text([*rows, ("last run", self.last_run)])]
        counts = Counter(finding.kind for finding in self.findings)
        for kind, count in counts.items():
            findings = [finding for finding in self.findings if finding.kind == kind][:most_of_a_kind]
            lines += [f"{kind}: {one_line(finding.what)}: {one_line(finding.reason)}" for finding in findings]
            if len(findings) < count:
                lines.append(f"{kind}: and {count - len(findings):,} more; sent to a file, all are listed")
        total = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        return "\n".join([*lines, total or "all is as it should be"])


def verify(folder: Path, corpus: Corpus | None = None) -> Verdict:
    """Read every embedding of a folder and compare it with the manifest, the record and, where given, the corpus.

    Raises OutputError where there is no such folder, or its lists are not balr's.
    """
    if not is_store(folder) and not (folder / RUN).is_file():
        raise OutputError(f"{folder}: holds neither {METADATA} nor {RUN}; give the save_dir of a run.")
    rows, sizes, norms, damaged = _read_all(folder)
    failed = {row["id"]: row["reason"] for row in read_failures(folder)}
    record, findings = _record(folder)
    dims = Counter(sizes.values())
    recorded = None if record is None else record.embedding_dim
    dim = dims.most_common(1)[0][0] if dims and recorded not in dims else recorded
    if recorded not in (None, dim):
        findings.append(Finding("contradiction", RUN, f"embeddings of {recorded} numbers, found of {dim}"))
    odd = {id_: size for id_, size in sizes.items() if size != dim}
    damaged += [Finding("broken", id_, f"{size} numbers, not {dim}", in_manifest=True) for id_, size in odd.items()]
    findings += [*damaged, *_unlisted(folder, rows), *_unfinished(record, rows, failed)]
    findings += () if corpus is None else _against(folder, corpus, rows, failed)
    run: Facts = record.runs[-1] if record and record.runs else {}
    return Verdict(
        listed=len(rows),
        whole=len(sizes) - len(odd),
        failed=len(failed),
        utterances=None if corpus is None else len(corpus),
        embedding_dim=dim,
        norms=(min(norms), float(np.median(norms)), max(norms)) if norms else None,
        last_run=f"{run.get('started', '-')}, {run.get('exit') or 'not ended'}" if run else "-",
        findings=tuple(findings),
    )


def forget(folder: Path, verdict: Verdict) -> int:
    """Take off the manifest what does not fit it, so that the next run embeds it again; no file is removed.

    Returns how many rows are gone. Raises OutputError where another run works in the folder.
    """
    ids = {one.what for one in verdict.findings if one.in_manifest}
    if not ids:
        return 0
    with locked(folder):
        for manifest in manifests_in(folder):
            manifest.write([row for row in manifest.read() if row["id"] not in ids])
        if has_parts(folder):
            from balr.stores.parquet_parts import drop_rows

            drop_rows(folder, ids)
    return len(ids)


def _read_all(folder: Path) -> tuple[dict[str, Row], dict[str, int], list[float], list[Finding]]:
    """Return the rows by id, the number of floats and the norm of each whole embedding, and what is damaged.

    A row without audio is that of an utterance that was skipped, and is not looked at.
    """
    rows: dict[str, Row] = {}
    sizes: dict[str, int] = {}
    norms: list[float] = []
    damaged: list[Finding] = []
    console = Console(stderr=True)
    hidden = not sys.stderr.isatty()
    for row, found in track(stored(folder), "reading embeddings", console=console, transient=True, disable=hidden):
        if not row["audio"]:
            continue
        rows[row["id"]] = row
        if isinstance(found, Exception):
            damaged.append(_damage(os.path.join(folder, row["embedding"]), row["id"], found))
        else:
            sizes[row["id"]] = found.size
            norms.append(float(np.linalg.norm(found)))
    return rows, sizes, norms, damaged


def _damage(place: str, id_: str, error: Exception) -> Finding:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Finding("missing", id_, f"{place}: missing", in_manifest=True)
    is_of_the_disk = isinstance(error, OSError)  # which may pass
    return Finding("broken", id_, f"{place}: {one_line(error)}", in_manifest=not is_of_the_disk)


def _record(folder: Path) -> tuple[Record | None, list[Finding]]:
    try:
        record = Record.of(folder)
    except OutputError as error:
        return None, [Finding("broken", RUN, str(error))]
    if not record.runs:
        return None, [Finding("missing", RUN, f"{folder / RUN}: no record of the model of these embeddings")]
    return record, []


def _unfinished(record: Record | None, rows: Mapping[str, Row], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Find what the end of the last run says of the lists."""
    if record is None:
        return
    last = record.runs[-1]
    counts = last.get("counts")
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        yield Finding("unfinished", "last run", str(last.get("exit") or "it has not ended, or was killed"))
        return
    not_reached = counts.get("not_reached", 0)
    if not_reached:
        yield Finding("unfinished", "last run", f"{last.get('exit')}; it did not reach {not_reached} utterances")
    for id_ in failed:
        if id_ in rows:
            yield Finding("contradiction", id_, f"in {METADATA} and in {FAILURES}", in_manifest=True)
    lost = counts.get("total", 0) - counts.get("without_audio", 0) - not_reached - len(rows) - len(failed)
    if lost > 0:
        yield Finding("missing", METADATA, f"{lost} utterances of the last run are neither listed nor failed")


def _unlisted(folder: Path, rows: Mapping[str, Row]) -> Iterator[Finding]:
    listed = {os.path.normpath(os.path.join(folder, row["embedding"])) for row in rows.values()}
    for path in sorted(files_of(folder)):
        if path.endswith(("_emb.npy", "_emb.txt")) and os.path.normpath(path) not in listed:
            yield Finding("extra", path, f"not in {METADATA}")


def _against(folder: Path, corpus: Corpus, rows: Mapping[str, Row], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Compare the lists with a corpus: its utterances, their audio, and where their embeddings belong."""
    ids = {utterance.id for utterance in corpus.utterances}
    for utterance in corpus.utterances:
        row = rows.get(utterance.id)
        if row is not None:
            yield from _misplaced(folder, corpus, utterance, row)
        elif utterance.id not in failed and utterance.audio is not None:
            yield Finding("missing", utterance.id, "in the corpus, but neither embedded nor failed")
    for id_ in dict.fromkeys([*rows, *failed]):
        if id_ not in ids:
            yield Finding("extra", id_, "not in the corpus", in_manifest=id_ in rows)


def _misplaced(folder: Path, corpus: Corpus, utterance: Utterance, row: Row) -> Iterator[Finding]:
    if not is_of(row, utterance):
        there = " ".join(row[name] for name in ("audio", "start", "end", "channel") if row.get(name))
        reason = f"of {there}, in the corpus {utterance.audio}{utterance.part.suffix}"
        yield Finding("contradiction", utterance.id, reason, in_manifest=True)
    elif row["crc32"] and not is_in_ark(row["embedding"]) and not Path(row["embedding"]).is_absolute():
        suffix = os.path.splitext(row["embedding"])[1]
        place = embedding_file(utterance, suffix, root=str(corpus.root_dir), output_dir=str(folder))
        expected = place.removeprefix(os.path.join(folder, ""))
        if expected != row["embedding"]:
            reason = f"listed as {row['embedding']}, and its place is {expected}"
            yield Finding("contradiction", utterance.id, reason, in_manifest=True)
