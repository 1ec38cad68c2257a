"""The files of an evaluation: curves.json, scores.csv or scores.parquet, and last evaluation.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from balr.atomic import as_output_error, whole_file, write_csv
from balr.config import EvaluationConfig
from balr.evaluation.curves import curves
from balr.evaluation.judgement import Judgement
from balr.evaluation.scoring import Matrix
from balr.evaluation.trials import Trials
from balr.stores.reading import as_utf8

EVALUATION, CURVES = "evaluation.json", "curves.json"
_COLUMNS = ("enrollment", "test", "label", "score", "llr")
_MOST_CSV = 1_000_000
_WORST = 10


def write_results(
    out: Path, judgement: Judgement, scores: Matrix, trials: Trials, names: list[str], settings: EvaluationConfig
) -> None:
    """Write the numbers of an evaluation, the curves of its page, and the scores of its trials. Raises OutputError."""
    with as_output_error(out):
        for name in (EVALUATION, "scores.csv", "scores.parquet"):  # those of another would pass for this one's
            (out / name).unlink(missing_ok=True)
    _write_json(out / CURVES, curves(judgement, trials.is_target) | {"worst": _worst(scores, trials, names)})
    format_ = settings.scores or ("csv" if len(trials) <= _MOST_CSV else "parquet")
    if format_ == "parquet":
        ids = [as_utf8(name) for name in names]
        sides = (trials.enrollment, trials.test)
        named = [pa.DictionaryArray.from_arrays(side.astype(np.int32), ids) for side in sides]
        columns = [*named, trials.is_target.astype(np.int8), scores, judgement.llrs]
        found = {name: column for name, column in zip(_COLUMNS, columns, strict=True) if column is not None}
        with whole_file(out / "scores.parquet") as file:
            parquet.write_table(pa.table(found), file, compression="zstd")
    elif format_ == "csv":
        write_csv(out / "scores.csv", _COLUMNS, _rows(judgement, scores, trials, names))
    _write_json(out / EVALUATION, judgement.as_json(), indent=2)


def _write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=indent, allow_nan=False).encode() + b"\n")


def _rows(judgement: Judgement, scores: Matrix, trials: Trials, names: list[str]) -> Iterator[dict[str, str]]:
    for number, (one, other) in enumerate(zip(trials.enrollment.tolist(), trials.test.tolist(), strict=True)):
        llr = "" if judgement.llrs is None else f"{judgement.llrs[number]:.6f}"
        score = f"{scores[number]:.6f}"
        label = str(int(trials.is_target[number]))
        yield {"enrollment": names[one], "test": names[other], "label": label, "score": score, "llr": llr}


def _worst(scores: Matrix, trials: Trials, names: list[str]) -> list[dict[str, Any]]:
    """Return the target trials of lowest and the nontarget trials of highest score."""
    found = []
    for kind, sign in ((True, 1), (False, -1)):
        rows = np.flatnonzero(trials.is_target == kind)
        keys = sign * scores[rows]
        for row in rows[np.argsort(keys, kind="stable")[:_WORST]]:
            enrollment, test = names[trials.enrollment[row]], names[trials.test[row]]
            score = float(scores[row])
            found.append({"enrollment": enrollment, "test": test, "label": int(kind), "score": score})
    return found
