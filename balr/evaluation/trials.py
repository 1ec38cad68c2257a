"""Trial lists in the formats of the field, as rows of embeddings: all ids are looked up before anything is scored."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from balr.atomic import sha256
from balr.data.readers import numbered_lines
from balr.errors import InputError, one_line

log = logging.getLogger(__name__)

_TARGETS = frozenset({"1", "target", "tgt", "true"})
_LABELS = _TARGETS | {"0", "nontarget", "non", "imp", "false"}
_COLUMNS = ("enrollment", "test", "label")
_SHOWN = 10
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trials:
    """Hold trials as rows of a list of embeddings `(trials,)`, and whether both sides are of one speaker.

    `models` are enrollments of several utterances: the rows of each. They are numbered after all embeddings.
    """

    enrollment: Indices
    test: Indices
    is_target: npt.NDArray[np.bool_]
    models: tuple[tuple[str, Indices], ...] = ()
    source: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.is_target)


def read_trials(
    path: Path, ids: Sequence[str], *, enrollment_map: Path | None = None, allow_missing: bool = False
) -> Trials:
    """Read a trial list and look up its ids, which may have a suffix that those of the embeddings lack, or lack theirs.

    csv with the columns enrollment, test and label; VoxCeleb (`1 a b`); Kaldi (`a b target`). An `enrollment_map`
    names models and their utterances, as CN-Celeb's enroll.map: `model utterance [utterance …]`. `allow_missing`
    leaves out trials with unknown ids. Raises InputError that lists all that is wrong.
    """
    for file in filter(None, (path, enrollment_map)):
        if not file.is_file():
            raise InputError(f"{file}: no such list.")
    *sides, labels = _read(path)
    members = {} if enrollment_map is None else _members(enrollment_map)
    names = {name for side in sides for name in side.dictionary.to_pylist()} - members.keys()
    rows = _rows_of(names.union(*members.values()), ids, path, allow_missing=allow_missing)
    found = {
        model: np.array([rows[one] for one in some if rows[one] >= 0], np.int64) for model, some in members.items()
    }
    models = [(model, some) for model, some in found.items() if len(some)]
    rows |= dict.fromkeys(members, -1) | {model: len(ids) + number for number, (model, _) in enumerate(models)}
    enrollment, test = (
        np.array([rows[name] for name in side.dictionary.to_pylist()], np.int64)[side.indices] for side in sides
    )
    is_target = np.array([label in _TARGETS for label in labels.dictionary.to_pylist()], bool)[labels.indices]
    kept = (enrollment >= 0) & (test >= 0)
    source = {"trials": str(path), "sha256": sha256(path), "left_out": int((~kept).sum())}
    source |= {"enrollment_map": str(enrollment_map)} if enrollment_map else {}
    trials = Trials(enrollment[kept], test[kept], is_target[kept], tuple(models), source)
    _check_repeated(path, ids, trials)
    return trials


def _read(path: Path) -> list[pa.DictionaryArray]:
    """Return the enrollments, tests and labels of a list as text."""
    number, first = next(numbered_lines(path), (1, ""))
    delimiter = next((one for one in (",", "\t") if one in first), " ")
    names = [name.strip(' "') for name in first.split(delimiter)]
    has_header = "label" in names or {"enrollment", "test"} <= set(names)
    if has_header and not set(_COLUMNS) <= set(names):
        raise InputError(f"{path}: columns {', '.join(names)}; enrollment, test and label are needed.")
    if first and not has_header and len(names) != 3:
        raise InputError(f"{path}: {len(names)} fields a line; expected `1 a b`, `a b target` or a csv with names.")
    columns = names if has_header else [*_COLUMNS]
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=number if has_header else 0),
            csv.ParseOptions(delimiter=delimiter),
            csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.dictionary(pa.int32(), pa.string()))),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a trial list: {one_line(error)[:300]}.") from error
    found = [table[name].combine_chunks().dictionary_encode() for name in _COLUMNS]
    if not has_header and not _LABELS.issuperset(found[2].dictionary.to_pylist()):
        found = [*found[1:], found[0]]  # VoxCeleb's labels come first
    for label in found[2].dictionary.to_pylist():
        if label not in _LABELS:
            where = "" if has_header else " in the first or the last field of all lines"
            raise InputError(f"{path}: label {label!r}: 1, 0, target or nontarget is expected{where}.")
    return found


def _members(path: Path) -> dict[str, list[str]]:
    """Read a map from models to their utterances; a model may take several lines."""
    found: dict[str, list[str]] = {}
    for number, line in numbered_lines(path):
        model, *utterances = line.split()
        if not utterances:
            raise InputError(f"{path}, line {number}: `model utterance [utterance …]` is expected.")
        found.setdefault(model, []).extend(utterances)
    return found


def _rows_of(names: Iterable[str], ids: Sequence[str], path: Path, *, allow_missing: bool) -> dict[str, int]:
    """Return the row of each name, with or without suffix; -1 where there is none and that is allowed."""
    rows = {id_: row for row, id_ in enumerate(ids)}
    by_stem: dict[str, list[int]] = {}
    for id_, row in rows.items():
        by_stem.setdefault(_stem(id_), []).append(row)
    found = {name: [rows[name]] if name in rows else by_stem.get(_stem(name), []) for name in names}
    unknown = [] if allow_missing else [name for name, some in found.items() if not some]
    ambiguous = [name for name, some in found.items() if len(some) > 1]
    hint = "; --allow-missing leaves their trials out"
    for bad, what, end in ((unknown, "have no embedding", hint), (ambiguous, "fit several embeddings", "")):
        if bad:
            more = f" and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
            raise InputError(f"{path}: {len(bad):,} ids {what}: {', '.join(sorted(bad)[:_SHOWN])}{more}{end}.")
    return {name: some[0] if some else -1 for name, some in found.items()}


def _stem(id_: str) -> str:
    head, dot, suffix = id_.rpartition(".")
    return head if dot and 1 <= len(suffix) <= 4 and suffix.isalnum() and not suffix.isdecimal() else id_


def _check_repeated(path: Path, ids: Sequence[str], trials: Trials) -> None:
    """Warn of trials that come twice, as some published lists have; refuse those with both labels."""
    pairs = trials.enrollment * (int(trials.test.max(initial=0)) + 1) + trials.test
    order = np.argsort(pairs, kind="stable")
    again = np.flatnonzero(np.diff(pairs[order]) == 0)
    if not len(again):  # as in nearly all lists
        return
    contradicting = again[np.diff(trials.is_target[order])[again]]
    shown = (contradicting if len(contradicting) else again)[0]
    first, second = order[shown : shown + 2].tolist()
    names = [*ids, *(name for name, _ in trials.models)]
    one, other = names[trials.enrollment[first]], names[trials.test[first]]
    which = f"first {one} {other}, trials {first + 1:,} and {second + 1:,}"
    if len(contradicting):
        raise InputError(f"{path}: {len(contradicting):,} trials come with both labels, {which}.")
    log.warning("%s: %s trials come twice, %s; each line counts", path, f"{len(again):,}", which)
