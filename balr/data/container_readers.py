"""Read a corpus that lies in tar shards (WebDataset) or parquet files (Hugging Face datasets)."""

import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balr.data.containers import parquet_file, tar_members
from balr.data.folders import suffixes_of
from balr.errors import InputError, one_line
from balr.records import Utterance

_LARGEST_JSON_BYTES = 1 << 20
_LONGEST_TEXT = 100_000  # the lists of a run are read with csv's limit


def read_containers(paths: Sequence[Path], audio_formats: Sequence[str]) -> list[Utterance]:
    """List the audio of tar and parquet files, in order; ids begin with the name of the file. Raises InputError."""
    found = []
    for path in paths:
        found += read_tar(path, audio_formats) if path.suffix.lower() == ".tar" else read_parquet(path)
    if not found:
        raise InputError(f"{paths[0]}: no utterances.")
    first: dict[str, Utterance] = {}
    for utterance in found:
        if first.setdefault(utterance.id, utterance) is not utterance:
            raise InputError(f"{utterance.audio}: its id {utterance.id!r} is that of {first[utterance.id].audio}, too.")
    return found


def read_tar(path: Path, audio_formats: Sequence[str]) -> list[Utterance]:
    """List the audio of a tar; `KEY.json` beside `KEY.flac` gives its id, speaker, duration and other fields."""
    suffixes = suffixes_of(audio_formats)
    try:
        members = tar_members(path)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise InputError(f"{path}: not a whole tar: {one_line(error)}; write it anew, or leave it out.") from error
    found = []
    for name in members:
        key, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes or os.path.basename(name).startswith("."):
            continue
        if os.path.isabs(name) or ".." in name.split("/"):
            raise InputError(f"{path}: member {name[:80]!r} leads out of the tar; leave it out.")
        folder, base = os.path.split(name)
        beside = (f"{key}.json", os.path.join(folder, f"{base.partition('.')[0]}.json"))  # the second is WebDataset's
        fields = next((_json(path, one, members) for one in beside if one in members), {})
        found.append(_utterance(f"{path.stem}/{key}", path / name, fields))
    if not found:
        raise InputError(f"{path}: no audio members; searched for {', '.join(suffixes)} (see audio_formats).")
    return found


def read_parquet(path: Path) -> list[Utterance]:
    """List the rows of a parquet file with a column `audio`: bytes, a path, or both as `datasets` writes them."""
    try:
        file = parquet_file(path)
        kinds = {field.name: str(field.type) for field in file.schema_arrow}
        if "audio" not in kinds:
            raise InputError(f"{path}: no column 'audio'; found {', '.join(kinds)[:200] or 'none'}.")
        if not any(word in kinds["audio"] for word in ("binary", "string")):
            raise InputError(f"{path}: column 'audio' holds {kinds['audio'][:80]}; bytes or paths are expected.")
        others = [name for name, kind in kinds.items() if name != "audio" and not _is_large(kind)]
        rows = (row for batch in file.iter_batches(columns=others) for row in batch.to_pylist())
        rows = rows if others else ({} for _ in range(file.metadata.num_rows))
        return [_utterance(f"{path.stem}/{number}", path / str(number), row) for number, row in enumerate(rows)]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a parquet file: {one_line(error)[:200]}.") from error


def _is_large(kind: str) -> bool:
    return any(word in kind for word in ("binary", "list", "struct", "map"))


def _json(path: Path, name: str, members: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    offset, size = members[name]
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            fields = json.loads(file.read(max(0, min(size, _LARGEST_JSON_BYTES))))
        if not isinstance(fields, dict):
            raise ValueError("no object of fields")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: member {name[:80]!r} is no JSON: {one_line(error)[:80]}.") from error
    return fields


def _utterance(id_: str, audio: Path, fields: Mapping[str, Any]) -> Utterance:
    texts = {str(name): str(value) for name, value in fields.items() if isinstance(value, str | int | float)}
    texts = {name: text for name, text in texts.items() if len(name) + len(text) <= _LONGEST_TEXT}
    speaker = texts.pop("speaker", "") or texts.get("speaker_id") or texts.get("spk_id")
    try:
        seconds = float(texts.get("duration", ""))
    except ValueError:
        seconds = 0.0
    return Utterance(
        texts.pop("id", "") or id_,
        audio,
        speaker or None,
        extra={name: text for name, text in texts.items() if name not in ("audio", "embedding", "crc32", "duration")},
        duration_seconds=seconds if 0 < seconds < float("inf") else None,
    )
