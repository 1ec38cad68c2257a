"""Trial lists in the formats of the field, as rows of embeddings: all ids are looked up before anything is scored."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from balr.errors import InputError, one_line

log = logging.getLogger(__name__)

_TARGETS = {"1", "target", "tgt", "true"}
_NONTARGETS = {"0", "nontarget", "non", "imp", "false"}
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
    if not path.is_file():
        raise InputError(f"{path}: no such trial list.")
    table = _read(path)
    enrollments, tests, labels = (table[name].combine_chunks().dictionary_encode() for name in _COLUMNS)
    lookup = Lookup(ids)
    models = {} if enrollment_map is None else _models(enrollment_map, lookup)
    numbered = {name: len(ids) + number for number, name in enumerate(models)}
    sides = []
    for column in (enrollments, tests):
        names = column.dictionary.to_pylist()
        rows = np.array([numbered.get(name, -1) if name in numbered else lookup(name) for name in names], np.int64)
        sides.append(rows[column.indices.to_numpy()])
    lookup.refuse_missing(path, allow_unknown=allow_missing)
    is_target = _classes(labels.dictionary.to_pylist(), path)[labels.indices.to_numpy()]
    known = (sides[0] >= 0) & (sides[1] >= 0)
    enrollment, test, is_target = sides[0][known], sides[1][known], is_target[known]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = {"trials": str(path), "sha256": digest, "left_out": int((~known).sum())}
    if enrollment_map is not None:
        source["enrollment_map"] = str(enrollment_map)
    trials = Trials(enrollment, test, is_target, tuple(models.items()), source)
    _check_repeated(path, ids, trials)
    return trials


class Lookup:
    """Find the row of an id; remember the ids that no embedding has or that fit several."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._rows = {id_: row for row, id_ in enumerate(ids)}
        self._by_stem: dict[str, list[int]] = {}
        for id_, row in self._rows.items():
            self._by_stem.setdefault(_stem(id_), []).append(row)
        self.unknown: list[str] = []
        self.ambiguous: list[str] = []

    def __call__(self, name: str) -> int:
        """Return the row of an id, with or without suffix; -1 if there is none."""
        row = self._rows.get(name)
        if row is not None:
            return row
        rows = self._by_stem.get(_stem(name), [])
        if len(rows) == 1:
            return rows[0]
        (self.ambiguous if rows else self.unknown).append(name)
        return -1

    def refuse_missing(self, path: Path, *, allow_unknown: bool) -> None:
        """Raise InputError where ids were not found, or fit several embeddings."""
        unknown = [] if allow_unknown else self.unknown
        for what, found in (("have no embedding", unknown), ("fit several embeddings", self.ambiguous)):
            if names := sorted(set(found)):
                shown = ", ".join(names[:_SHOWN])
                more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
                hint = "; --allow-missing leaves their trials out" if found is unknown else ""
                raise InputError(f"{path}: {len(names):,} ids {what}: {shown}{more}{hint}.")


def _stem(id_: str) -> str:
    head, dot, suffix = id_.rpartition(".")
    return head if dot and 1 <= len(suffix) <= 4 and suffix.isalnum() and not suffix.isdecimal() else id_


def _read(path: Path) -> pa.Table:
    """Return the three columns as text."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a trial list: {one_line(error)}.") from error
    delimiter = next((one for one in (",", "\t") if one in first), " ")
    names = [name.strip(' "\r\n') for name in first.split(delimiter)]
    has_header = "label" in names or {"enrollment", "test"} <= set(names)
    if has_header and not set(_COLUMNS) <= set(names):
        raise InputError(f"{path}: columns {', '.join(names)}; enrollment, test and label are needed.")
    broken: list[str] = []

    def note(row: csv.InvalidRow) -> str:
        where = f"line {row.number}" if row.number is not None else "a line"
        broken.append(f"{path}, {where}: {row.actual_columns} fields, {row.expected_columns} are expected: {row.text}")
        return "skip"

    columns = names if has_header else [str(number) for number in range(len(first.split()) if delimiter == " " else 3)]
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=int(has_header)),
            csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note),
            csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.dictionary(pa.int32(), pa.string()))),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a trial list: {one_line(error)[:200]}.") from error
    if broken:
        raise InputError(f"{broken[0][:300]}{f' (and {len(broken) - 1:,} more)' if len(broken) > 1 else ''}.")
    return table if has_header else _named(path, table)


def _named(path: Path, table: pa.Table) -> pa.Table:
    """Name three columns, of which the first or the last holds the labels."""
    if table.num_columns != 3:
        raise InputError(
            f"{path}: {table.num_columns} fields a line; expected `1 a b`, `a b target` or a csv with names."
        )
    known = pa.array(sorted(_TARGETS | _NONTARGETS))

    def holds_labels(column: pa.ChunkedArray) -> bool:
        return bool(pc.all(pc.is_in(pc.unique(column.cast(pa.string())), known)).as_py())

    if holds_labels(table.column(2)):
        return table.rename_columns(list(_COLUMNS))
    if holds_labels(table.column(0)):
        return table.rename_columns(["label", "enrollment", "test"])
    raise InputError(f"{path}: neither the first nor the last field of all lines is 1, 0, target or nontarget.")


def _classes(labels: Iterable[str | None], path: Path) -> npt.NDArray[np.bool_]:
    found = []
    for label in labels:
        if label not in _TARGETS | _NONTARGETS:
            raise InputError(f"{path}: label {label!r}: 1, 0, target or nontarget is expected.")
        found.append(label in _TARGETS)
    return np.array(found, bool)


def _check_repeated(path: Path, ids: Sequence[str], trials: Trials) -> None:
    """Warn of trials that come twice, as some published lists have; refuse those with both labels."""
    pairs = trials.enrollment * (int(trials.test.max(initial=0)) + 1) + trials.test
    ordered = np.sort(pairs)
    if not (ordered[1:] == ordered[:-1]).any():  # as in nearly all lists
        return
    order = np.argsort(pairs, kind="stable")
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    contradicting = again[trials.is_target[order[again]] != trials.is_target[order[again + 1]]]
    first, second = (int(order[row]) for row in ((contradicting if len(contradicting) else again)[0] + np.arange(2)))
    names = [*ids, *(name for name, _ in trials.models)]
    which = (
        f"first {names[trials.enrollment[first]]} {names[trials.test[first]]}, trials {first + 1:,} and {second + 1:,}"
    )
    if len(contradicting):
        raise InputError(f"{path}: {len(contradicting):,} trials come with both labels, {which}.")
    log.warning("%s: %s trials come twice, %s; each line counts", path, f"{len(again):,}", which)


def _models(path: Path, lookup: Callable[[str], int]) -> dict[str, Indices]:
    """Read a map from models to their utterances; a model may take several lines."""
    found: dict[str, list[int]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}.") from error
    for number, line in enumerate(lines, 1):
        model, *utterances = line.split() or [""]
        if model and not utterances:
            raise InputError(f"{path}, line {number}: `model utterance [utterance …]` is expected.")
        found.setdefault(model, []).extend(map(lookup, utterances))
    known = {model: np.array([row for row in rows if row >= 0], np.int64) for model, rows in found.items()}
    return {model: rows for model, rows in known.items() if len(rows)}
