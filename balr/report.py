"""`balr report`: a page of one or several runs, and their figures for a paper."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from balr.atomic import whole_file
from balr.config import EvaluationConfig
from balr.errors import InputError, one_line
from balr.evaluate import evaluate
from balr.evaluation.figures import evaluation_figures
from balr.evaluation.inspection import Inspection, inspect
from balr.evaluation.judgement import CAUTION, TITLES, percent, tables
from balr.evaluation.page import Section, big_numbers, page, table, write_figures
from balr.evaluation.pictures import corpus_figures
from balr.evaluation.results import CURVES, EVALUATION
from balr.evaluation.scoring import unit
from balr.evaluation.sections import suspects, worst_errors
from balr.evaluation.source import Embeddings, read_embeddings
from balr.runs.failures import FAILURES, read_failures
from balr.runs.record import Record
from balr.runs.summary import duration

_COMPARED = 1_000


@dataclass(frozen=True)
class Run:
    """Hold what a page shows of a folder: embeddings, record, and the latest evaluation with its curves, if any."""

    folder: Path
    own: Embeddings
    record: Record
    evaluation: Mapping[str, Any]
    curves: Mapping[str, Any]

    @property
    def name(self) -> str:
        return "/".join(Path(os.path.abspath(self.folder)).parts[1:][-2:])

    @property
    def last(self) -> Mapping[str, Any]:
        """Return the entry of the last run that computed something and came to its end."""
        entries = [entry for entry in self.record.runs if {"checkpoint", "stage_seconds", "counts"} <= entry.keys()]
        return entries[-1] if entries else {}

    @property
    def model(self) -> str:
        architecture = self.last.get("checkpoint", {}).get("architecture", "unknown")
        return f"{self.record.model.get('name', 'unknown')} ({architecture})"

    def metric(self, name: str) -> float | None:
        value = self.evaluation.get("metrics", {}).get(name, {}).get("value")
        return None if value is None else float(value)


def report(folders: Sequence[Path], out: Path, *, figures: Path | None = None) -> list[Path]:
    """Write a page of runs, and with `figures` their figures as svg, png and pdf, and return the files.

    A run with speakers that was never evaluated is evaluated over all pairs. Raises a BalrError.
    """
    runs = [_read(folder) for folder in folders]
    sections, written = [], [out]
    if len(runs) > 1:
        sections.append(Section(f"<h2>Comparison</h2>{_comparison(runs)}"))
    for run in runs:
        found = _sections(run, out)
        sections += found
        if figures is not None:
            prefix = f"{run.name.replace('/', '-')}-" if len(runs) > 1 else ""
            written += write_figures([one for section in found for one in section.figures], figures, prefix=prefix)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    text = page(f"Speaker embeddings: {title}", sections)
    with whole_file(out) as file:
        file.write(text.encode("utf-8", errors="replace"))
    return written


def _read(folder: Path) -> Run:
    own = read_embeddings(folder)
    files = sorted(folder.glob(f"evaluation/*/{EVALUATION}"), key=lambda file: file.stat().st_mtime)
    if not files and (own.speakers >= 0).all() and 1 < len(set(own.names)) < len(own.names):
        files = [evaluate(folder, EvaluationConfig())[1] / EVALUATION]
    if not files:
        return Run(folder, own, Record.of(folder), {}, {})
    try:
        found = [json.loads(files[-1].with_name(name).read_text(encoding="utf-8")) for name in (EVALUATION, CURVES)]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{files[-1].parent}: not an evaluation ({one_line(error)[:80]}); run balr evaluate."
        ) from error
    return Run(folder, own, Record.of(folder), found[0], found[1])


def _sections(run: Run, out: Path) -> list[Section]:
    mean = run.own.mean * (run.evaluation.get("mean", "self") != "none")
    found = inspect(run.own, mean=mean)
    sections = [
        Section(
            f"<h2>{escape(run.name)}</h2>{_numbers(run, found)}"
            f"<details open><summary>What was run</summary>{_facts(run)}</details>"
        )
    ]
    if run.evaluation:
        of, counts = run.evaluation, run.evaluation["trial_counts"]
        summary = f"{counts['targets']:,} target and {counts['nontargets']:,} nontarget trials: {of['trials']}."
        summary += f" Score: {of['score']}; mean subtracted: {of['mean']}."
        html = "".join(table(columns, rows, numbers=columns[1:]) for columns, rows in tables(of))
        html = f"<h2>Evaluation</h2><p>{escape(summary)}</p>{html}<p>{CAUTION}</p>"
        sections.append(Section(html, tuple(evaluation_figures(dict(run.curves)))))
        sections.append(Section(f"<h3>Worst errors</h3>{worst_errors(run.curves, run.own)}"))
    html = f"<h2>Corpus</h2>{suspects(found)}"
    sections.append(Section(html, tuple(corpus_figures(run.own, mean, out.parent))))
    return sections


def _numbers(run: Run, found: Inspection) -> str:
    numbers = [(f"{len(run.own.ids):,}", "embeddings")]
    speakers = len({name for name in run.own.names if name})
    numbers += [(f"{speakers:,}", "speakers")] if speakers else []
    for name in ("eer", "min_dcf_0.01", "cllr"):
        if (value := run.metric(name)) is not None:
            numbers.append((percent(value) if name == "eer" else f"{value:.3f}", TITLES[name]))
    if found.neighbour_accuracy is not None:
        numbers.append((percent(found.neighbour_accuracy), "nearest neighbour is of the same speaker"))
    if run.last:
        numbers.append((f"{run.last['x_real_time']:.0f} x", "real time"))
    return big_numbers(numbers)


def _facts(run: Run) -> str:
    last, rows = run.last, []
    checkpoint = last.get("checkpoint", {})
    rows.append(("model", run.model))
    if checkpoint:
        rows.append(("weights", f"sha256 {checkpoint['weights_sha256']}"))
        rows.append(("features", ", ".join(f"{name} {value}" for name, value in last["features"].items())))
        rows.append(("computed", f"{last['precision']}, engine {last['engine']}, on {last['device']}"))
        counts = [f"{value:,} {name.replace('_', ' ')}" for name, value in last["counts"].items() if value]
        rows.append(("counts", ", ".join(counts)))
        seconds = ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in last["stage_seconds"].items())
        rows.append(("seconds by stage", f"{seconds}; threads added up"))
        versions = last["software"]["packages"]
        shown = [f"{name} {versions[name]}" for name in ("balr", "torch", "torchaudio") if name in versions]
        rows.append(("software", ", ".join(shown)))
    failed = sum(1 for _ in read_failures(run.folder))
    rows.append(("failures", f"{failed:,}, listed in {FAILURES}" if failed else "none"))
    known = run.own.seconds[np.isfinite(run.own.seconds)]
    rows += [("audio", f"{duration(float(known.sum()))} in {len(known):,} utterances")] if len(known) else []
    return table(("", ""), rows)


def _comparison(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        eer, cost, last = run.metric("eer"), run.metric("min_dcf_0.01"), run.last
        model, agreement = os.path.basename(run.model), _agreement(runs[0].own, run.own)
        rows.append(
            (
                run.name,
                model,
                str(last.get("precision", "-")),
                str(last.get("device", "-")),
                "-" if eer is None else percent(eer),
                "-" if cost is None else f"{cost:.3f}",
                f"{last['x_real_time']:.0f} x" if last else "-",
                "-" if agreement is None else f"{agreement:.4f}",
            )
        )
    columns = ("run", "model", "precision", "device", "EER", "minDCF, p=0.01", "x real time", "agreement")
    text = "<p>Agreement: correlation of the cosines of all pairs of utterances with those of the first run.</p>"
    return table(columns, rows, numbers=columns[4:]) + text


def _agreement(first: Embeddings, other: Embeddings) -> float | None:
    """Return the correlation of cosines between utterances that both runs have, up to a thousand."""
    places = {id_: row for row, id_ in enumerate(other.ids)}
    shared = [(row, places[id_]) for row, id_ in enumerate(first.ids) if id_ in places][:_COMPARED]
    if len(shared) < 3:
        return None
    above = np.triu_indices(len(shared), 1)
    cosines = []
    for own, rows in ((first, [one for one, _ in shared]), (other, [one for _, one in shared])):
        units = unit(own.matrix[rows] - own.mean)
        cosines.append((units @ units.T)[above])
    return float(np.corrcoef(cosines[0], cosines[1])[0, 1])
