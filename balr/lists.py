"""What a folder of embeddings says about itself: metadata.csv, failures.csv and run.json.

The invariant kept here: one folder holds embeddings of one model, each of the audio that it is listed with.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from balr.data import durations
from balr.data.dataset import AudioDataset
from balr.data.readers import Utterance
from balr.embeddings.checkpoint import pinned_revision
from balr.errors import Failure, OutputError
from balr.files import whole_file, write_csv

_METADATA, _FAILURES, _RUN = "metadata.csv", "failures.csv", "run.json"
DURATIONS = "durations.csv"
_COLUMNS = ("id", "audio", "speaker", "embedding")
_FAILURE_COLUMNS = tuple(column.name for column in fields(Failure))

Row = Mapping[str, str]


def identity(model: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return what decides a model's numbers: its files, by content where local, its feature settings, the precision."""
    settings = {"precision": precision, "engine": model.get("engine", "torch")}
    settings |= {f"features.{name}": value for name, value in model.get("features", {}).items() if name != "_target_"}
    names = {name: model[name] for name in ("model_name", "config_name")}
    folder = Path(os.path.expanduser(model["model_dir"])) if model.get("model_dir") else None
    if folder and all((folder / name).is_file() for name in names.values()):
        return {**{f"{key} sha256": _sha256(folder / name) for key, name in names.items()}, **settings}
    repo = model["model_repo"]
    return {"model_repo": repo, "revision": model.get("revision") or pinned_revision(repo), **names, **settings}


def refuse_foreign_lists(folder: Path, source: str) -> None:
    """Refuse to write lists over the very list that is read, or over somebody else's. Raises OutputError."""
    kinds = ((_METADATA, _COLUMNS), (_FAILURES, _FAILURE_COLUMNS), (DURATIONS, durations.COLUMNS))
    for name, columns in kinds:
        if os.path.isfile(source) and (folder / name).is_file() and (folder / name).samefile(source):
            raise OutputError(f"{folder / name}: is the input and would be overwritten; choose another save_dir.")
        _rows(folder / name, columns)


def refuse_another_model(folder: Path, model: Mapping[str, Any]) -> None:
    """Refuse a folder that was made with another model or other features. Raises OutputError with what differs."""
    record = _read_record(folder)
    if record is None:
        return
    if record["replacing"]:
        raise OutputError(
            f"{folder}: a run that was to replace another model's embeddings stopped; force=true redoes it."
        )
    before = record["model"]
    differing = [name for name in {**before, **model} if before.get(name) != model.get(name)]
    if differing:
        shown = ", ".join(f"{name} ({before.get(name, '-')} there, {model.get(name, '-')} here)" for name in differing)
        raise OutputError(
            f"{folder}: was made with another model: {shown}; choose another save_dir, or force=true to embed again."
        )


def refuse_another_corpus(folder: Path, dataset: AudioDataset) -> None:
    """Refuse a folder where an id or an embedding file belongs to other audio. Raises OutputError."""
    listed = _rows(folder / _METADATA, _COLUMNS)
    by_id = {row["id"]: row["audio"] for row in listed if row["audio"]}
    by_file = {str(folder / row["embedding"]): row["audio"] for row in listed if row["audio"]}
    for utterance in dataset.utterances:
        if utterance.audio is None:
            continue
        place = str(dataset.vector_path(utterance))
        for held, what in ((by_id.get(utterance.id), utterance.id), (by_file.get(place), place)):
            if held and not _same(held, utterance.audio):
                raise OutputError(
                    f"{folder / _METADATA}: holds embeddings of another corpus: {what!r} is {held} there and "
                    f"{utterance.audio} here; choose another save_dir, or force=true to embed all again."
                )


def write_lists(folder: Path, dataset: AudioDataset, failures: Iterable[Failure]) -> None:
    """Write metadata.csv, which `AudioDataset.from_csv` reads back, and failures.csv where there are any.

    Embeddings are named relative to the folder where they lie below it, audio by its absolute path. What an earlier run
    of another list left in the folder stays listed.
    """
    failed = {failure.id: failure for failure in failures}
    ids = {utterance.id for utterance in dataset.utterances}
    done = [u for u in dataset.utterances if u.id not in failed and (u.audio is None or dataset.has_vector(u))]
    done_ids = {utterance.id for utterance in done}
    earlier = [
        row
        for row in _rows(folder / _METADATA, _COLUMNS)
        if row["id"] not in ids and (folder / row["embedding"]).is_file()
    ]
    rows = [*(_row(utterance, dataset, folder) for utterance in done), *earlier]
    extra = dict.fromkeys(name for row in rows for name in row if name not in _COLUMNS)
    write_csv(folder / _METADATA, [*_COLUMNS, *extra], rows)
    not_retried = [
        row for row in _rows(folder / _FAILURES, _FAILURE_COLUMNS) if row["id"] in ids - done_ids - failed.keys()
    ]
    now = [{name: getattr(failure, name) for name in _FAILURE_COLUMNS} for failure in failed.values()]
    if now or not_retried:
        write_csv(folder / _FAILURES, _FAILURE_COLUMNS, [*now, *not_retried])
    elif _rows(folder / _FAILURES, _FAILURE_COLUMNS):
        (folder / _FAILURES).unlink()


@contextmanager
def recorded(folder: Path, model: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Keep in run.json what made this folder's embeddings, and until the end whether another's are being replaced.

    What the run finds out on its way, such as how batches were made, goes into the mapping that is yielded.
    """
    record = _read_record(folder)
    replacing = record is not None and (record["replacing"] or record["model"] != model)
    computed: dict[str, str] = {} if record is None or replacing else record["computed"]
    _write_record(folder, model, replacing=replacing, computed=computed)
    done = False
    try:
        yield computed
        done = True
    finally:
        _write_record(folder, model, replacing=replacing and not done, computed=computed)


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / _RUN
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {
            "model": dict(record["model"]),
            "replacing": bool(record["replacing"]),
            "computed": dict(record.get("computed", {})),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: not balr's record of a run ({error}); choose another save_dir.") from error


def _write_record(folder: Path, model: Mapping[str, Any], *, replacing: bool, computed: Mapping[str, str]) -> None:
    record = {"model": model, "replacing": replacing, "computed": computed}
    with whole_file(folder / _RUN) as file:
        file.write(json.dumps(record, indent=2).encode() + b"\n")


def _row(utterance: Utterance, dataset: AudioDataset, folder: Path) -> dict[str, str]:
    vector = utterance.embedding if utterance.audio is None else dataset.vector_path(utterance)
    below = vector.relative_to(folder) if vector and vector.is_relative_to(folder) else vector
    known = (utterance.id, str(utterance.audio or ""), utterance.speaker or "", str(below))
    return {**utterance.extra, **dict(zip(_COLUMNS, known, strict=True))}


def _rows(path: Path, columns: Iterable[str]) -> list[Row]:
    """Read a list that balr wrote; a file with other columns is somebody else's. Raises OutputError for that."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, restval="")
            if list(columns) != list(reader.fieldnames or [])[: len(list(columns))]:
                raise OutputError(f"{path}: was not written by balr and would be overwritten; choose another save_dir.")
            return [{name: cell for name, cell in row.items() if name is not None} for row in reader]
    except csv.Error as error:
        raise OutputError(f"{path}: not a csv: {error}; choose another save_dir.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same(held: str, audio: Path) -> bool:
    return held == str(audio) or os.path.realpath(held) == os.path.realpath(audio)
