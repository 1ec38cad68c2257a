"""`balr report`: a page of one or several runs, and their figures for a paper."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from balr.evaluation.page import page, write_figures
from balr.evaluation.pictures import corpus_figures, snippet
from balr.evaluation.results import CURVES, EVALUATION
from balr.evaluation.scoring import unit
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
    shown = [_shown(run, out) for run in runs]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    comparison = [_compared(run, runs[0]) for run in runs if len(runs) > 1]
    text = page(f"Speaker embeddings: {title}", shown, comparison=comparison, caution=CAUTION)
    with whole_file(out) as file:
        file.write(text.encode("utf-8", errors="replace"))
    written = [out]
    for run, one in zip(runs, shown, strict=True):
        if figures is not None:
            prefix = f"{run.name.replace('/', '-')}-" if len(runs) > 1 else ""
            written += write_figures([*one["figures"], *one["pictures"]], figures, prefix=prefix)
    return written


def _read(folder: Path) -> Run:
    own = read_embeddings(folder)
    files = sorted(folder.glob(f"evaluation/*/{EVALUATION}"), key=lambda file: file.stat().st_mtime)
    if not files and (own.speakers >= 0).all() and 1 < len(set(own.names)) < len(own.names):
        files = [evaluate(folder, EvaluationConfig())[1] / EVALUATION]
    try:
        found = [json.loads(files[-1].with_name(name).read_text("utf-8")) for name in (EVALUATION, CURVES) if files]
    except (OSError, ValueError) as error:
        raise InputError(f"{files[-1].parent}: not an evaluation ({one_line(error)}); run balr evaluate.") from error
    return Run(folder, own, Record.of(folder), *(found or ({}, {})))


def _shown(run: Run, out: Path) -> dict[str, Any]:
    """Return what the page shows of a run, by the names in page.html."""
    mean = run.own.mean * (run.evaluation.get("mean", "self") != "none")
    found = inspect(run.own, mean=mean)
    suspects: dict[str, list[tuple[str, ...]]] = {}
    for one in found.suspects:
        row = (one.id, one.speaker, f"{one.value:.4g}", one.other, one.other_speaker)
        suspects.setdefault(one.kind, []).append(row)
    shown: dict[str, Any] = {"name": run.name, "numbers": _numbers(run, found), "facts": _facts(run), "figures": []}
    if of := run.evaluation:
        summary = "{targets:,} target and {nontargets:,} nontarget trials".format(**of["trial_counts"])
        shown["summary"] = f"{summary}: {of['trials']}. Score: {of['score']}; mean subtracted: {of['mean']}."
        shown |= {"tables": tables(of), "figures": evaluation_figures(dict(run.curves)), "errors": _worst_errors(run)}
    return {**shown, "evaluation": of, "suspects": suspects, "pictures": corpus_figures(run.own, mean, out.parent)}


def _worst_errors(run: Run) -> list[tuple[str, ...]]:
    """Return the worst errors of an evaluation, to listen to."""
    place = {id_: row for row, id_ in enumerate(run.own.ids)}
    rows: list[tuple[str, ...]] = []
    for error in run.curves["worst"]:
        sides = [error["enrollment"], error["test"]]
        sounds = [snippet(run.own, place[side]) if side in place else "" for side in sides]
        kind = "target" if error["label"] else "nontarget"
        rows.append((kind, f"{error['score']:.4f}", sides[0], sounds[0], sides[1], sounds[1]))
    return rows


def _numbers(run: Run, found: Inspection) -> list[tuple[str, str]]:
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
    return numbers


def _facts(run: Run) -> list[tuple[str, str]]:
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
    return rows


def _compared(run: Run, first: Run) -> tuple[str, ...]:
    eer, cost, last = run.metric("eer"), run.metric("min_dcf_0.01"), run.last
    agreement = _agreement(first.own, run.own)
    return (
        run.name,
        os.path.basename(run.model),
        str(last.get("precision", "-")),
        str(last.get("device", "-")),
        "-" if eer is None else percent(eer),
        "-" if cost is None else f"{cost:.3f}",
        f"{last['x_real_time']:.0f} x" if last else "-",
        "-" if agreement is None else f"{agreement:.4f}",
    )


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
