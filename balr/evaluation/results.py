"""The files of an evaluation: evaluation.json, curves.json, scores.csv or scores.parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from balr.atomic import whole_file, write_csv
from balr.config import EvaluationConfig
from balr.evaluation.curves import curves
from balr.evaluation.judgement import Judgement, Scored
from balr.evaluation.trials import Trials

EVALUATION, CURVES = "evaluation.json", "curves.json"
_MOST_CSV = 1_000_000
_WORST = 10


def write_results(
    out: Path, judgement: Judgement, scored: Scored, trials: Trials, names: list[str], settings: EvaluationConfig
) -> None:
    """Write the numbers of an evaluation, the curves of its page, and the scores of its trials. Raises OutputError."""
    lines = curves(judgement, scored) | {"worst": _worst(scored, trials, names)}
    for name, content in ((EVALUATION, judgement.as_json()), (CURVES, lines)):
        with whole_file(out / name) as file:
            indent = 2 if name == EVALUATION else None
            file.write(json.dumps(content, indent=indent, allow_nan=False).encode() + b"\n")
    for name in ("scores.csv", "scores.parquet"):  # one of another evaluation would pass for this one's
        (out / name).unlink(missing_ok=True)
    format_ = settings.scores or ("csv" if len(trials) <= _MOST_CSV else "parquet")
    if format_ == "parquet":
        columns = {
            "enrollment": pa.DictionaryArray.from_arrays(trials.enrollment.astype(np.int32), names),
            "test": pa.DictionaryArray.from_arrays(trials.test.astype(np.int32), names),
            "label": trials.is_target.astype(np.int8),
            "score": scored.scores,
        }
        table = pa.table(columns | ({} if judgement.llrs is None else {"llr": judgement.llrs}))
        with whole_file(out / "scores.parquet") as file:
            parquet.write_table(table, file, compression="zstd")
    elif format_ == "csv":
        write_csv(
            out / "scores.csv", ("enrollment", "test", "label", "score", "llr"), _rows(judgement, scored, trials, names)
        )


def _rows(judgement: Judgement, scored: Scored, trials: Trials, names: list[str]) -> Iterator[dict[str, str]]:
    for number, (one, other) in enumerate(zip(trials.enrollment.tolist(), trials.test.tolist(), strict=True)):
        llr = "" if judgement.llrs is None else f"{judgement.llrs[number]:.6f}"
        score = f"{scored.scores[number]:.6f}"
        label = str(int(trials.is_target[number]))
        yield {"enrollment": names[one], "test": names[other], "label": label, "score": score, "llr": llr}


def _worst(scored: Scored, trials: Trials, names: list[str]) -> list[dict[str, Any]]:
    """Return the target trials of lowest and the nontarget trials of highest score."""
    found = []
    for kind, sign in ((True, 1), (False, -1)):
        rows = np.flatnonzero(trials.is_target == kind)
        keys = sign * scored.scores[rows]
        for row in rows[np.argsort(keys, kind="stable")[:_WORST]]:
            enrollment, test = names[trials.enrollment[row]], names[trials.test[row]]
            score = float(scored.scores[row])
            found.append({"enrollment": enrollment, "test": test, "label": int(kind), "score": score})
    return found
