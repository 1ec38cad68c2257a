"""`balr evaluate`: from a store of embeddings and a trial list to scores, metrics and thresholds."""

import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balr.atomic import write_csv
from balr.config import EvaluationConfig
from balr.errors import InputError
from balr.evaluation import pairs, scoring
from balr.evaluation.inspection import Inspection, Suspect
from balr.evaluation.inspection import inspect as inspect_utterances
from balr.evaluation.judgement import CAUTION, Judgement, judge, tables
from balr.evaluation.metrics import ScoreCounts, count_scores
from balr.evaluation.results import write_results
from balr.evaluation.source import Embeddings, mean_of, read_embeddings, refuse_unknown_speakers
from balr.evaluation.trials import Trials, read_trials
from balr.runs.provenance import now
from balr.runs.record import Record
from balr.runs.summary import as_text as render
from balr.runs.summary import relative

log = logging.getLogger(__name__)

SUSPECTS = "suspects.csv"
_FEWEST_OF_A_COHORT = 3


def evaluate(save_dir: Path, settings: EvaluationConfig) -> tuple[Judgement, Path]:
    """Score and judge the embeddings of a folder, write what was found, and return it with its folder.

    Raises a BalrError where trials, cohort or mean do not fit the embeddings.
    """
    own = read_embeddings(save_dir)
    path = None if settings.trials is None else Path(settings.trials).expanduser()
    trials = _all_pairs(own, settings) if path is None else _listed(path, own, settings)
    mean, names = _mean(own, settings.mean), [*own.ids, *(name for name, _ in trials.models)]
    centred = scoring.enrolled(own.matrix - mean, trials, of_unit=settings.enrollment == "mean_of_unit")
    used = np.unique(np.concatenate([trials.enrollment, trials.test]))
    scoring.refuse_unusable(centred[used], [names[row] for row in used])
    cohort = _cohort(own, settings)
    scores = scoring.score(centred, trials, cohort=None if cohort is None else cohort - mean, top_n=settings.top_n)
    counts = {} if path is not None else _session_counts(own, trials, scores, mean)
    speakers, facts = _speakers_of(trials, own), _facts(own, trials, settings)
    judgement = judge(scores, trials.is_target, speakers, counts=counts, draws=settings.bootstrap, facts=facts)
    name = "all-pairs" if path is None else path.stem
    out = Path(settings.out).expanduser() if settings.out else save_dir / "evaluation" / name
    write_results(out, judgement, scores, trials, names, settings)
    return judgement, out


def inspect(save_dir: Path, *, mean: str = "self", out: Path | None = None) -> tuple[Inspection, Path]:
    """Look for suspicious utterances and speakers, write suspects.csv, and return what was found with its path."""
    own = read_embeddings(save_dir)
    found = inspect_utterances(own, mean=_mean(own, mean))
    path = (out or save_dir / "evaluation") / SUSPECTS
    rows = ({**asdict(one), "value": f"{one.value:.6g}"} for one in found.suspects)
    write_csv(path, [field.name for field in fields(Suspect)], rows)
    return found, path


def _listed(path: Path, own: Embeddings, settings: EvaluationConfig) -> Trials:
    models = Path(settings.enrollment_map).expanduser() if settings.enrollment_map else None
    trials = read_trials(path, own.ids, enrollment_map=models, allow_missing=settings.allow_missing)
    if left_out := trials.source["left_out"]:
        log.warning("%s: %s trials are left out, as their ids have no embedding", path, f"{left_out:,}")
    return trials


def _all_pairs(own: Embeddings, settings: EvaluationConfig) -> Trials:
    refuse_unknown_speakers(own.ids, own.names)
    if len(own.ids) * (len(own.ids) - 1) // 2 <= pairs.MOST_TRIALS:
        return pairs.all_pairs(own.speakers)
    if settings.cohort:
        raise InputError(f"{own.folder}: all pairs of {len(own.ids):,} utterances with a cohort; give a trial list.")
    return pairs.sampled_pairs(own.speakers)


def _session_counts(
    own: Embeddings, trials: Trials, scores: scoring.Matrix, mean: scoring.Matrix
) -> dict[str, ScoreCounts]:
    """Count all pairs where only a sample is listed; and pairs across sessions, where ids name sessions."""
    named = [pairs.session_of(id_) for id_ in own.ids]
    of_speaker = [f"{speaker}/{session}" for speaker, session in zip(own.speakers, named, strict=True)]
    sessions = pairs.numbered(of_speaker) if all(named) else None
    if "listed" in trials.source:
        return pairs.pairs_by_histogram(scoring.unit(own.matrix - mean), own.speakers, sessions)
    if sessions is None:
        return {}
    across = (sessions[trials.enrollment] != sessions[trials.test]) | ~trials.is_target
    if across.all() or not trials.is_target[across].any():
        return {}
    return {"across sessions": count_scores(scores[across], trials.is_target[across])}


def _mean(own: Embeddings, choice: str) -> scoring.Matrix:
    folder = Path(choice).expanduser()
    is_folder = choice not in ("self", "none") and folder.is_dir()
    return _another(own, folder).mean if is_folder else mean_of(own.matrix, choice)


def _cohort(own: Embeddings, settings: EvaluationConfig) -> scoring.Matrix | None:
    """Return the mean of each speaker of the cohort `(speakers, dim)`."""
    if settings.cohort is None:
        return None
    other = _another(own, Path(settings.cohort).expanduser())
    if (other.speakers < 0).any():
        raise InputError(f"{other.folder}: a cohort needs a speaker for each utterance.")
    count = int(other.speakers.max()) + 1
    if count < _FEWEST_OF_A_COHORT:
        raise InputError(f"{other.folder}: a cohort needs some speakers, and this one has {count}.")
    if settings.top_n > count:
        log.warning("the cohort has %d speakers, fewer than top_n=%d: all are used", count, settings.top_n)
    order = np.argsort(other.speakers, kind="stable")
    starts = np.searchsorted(other.speakers[order], np.arange(count))
    sums = np.add.reduceat(other.matrix[order], starts, axis=0, dtype=np.float64)
    return (sums / np.bincount(other.speakers)[:, None]).astype(np.float32)


def _another(own: Embeddings, folder: Path) -> Embeddings:
    """Read another folder. Raises InputError where its embeddings are not of the same model."""
    other, record, model = read_embeddings(folder), Record.of(own.folder), Record.of(folder).model
    if record.model and model and not record.is_of(model):
        names = f"of {model.get('name')}, and {own.folder} of {record.model.get('name')}"
        raise InputError(f"{folder}: its embeddings are {names}, or their settings differ; embed both alike.")
    if other.matrix.shape[1] != own.matrix.shape[1]:
        sizes = f"{other.matrix.shape[1]} numbers each, and {own.matrix.shape[1]} in {own.folder}"
        raise InputError(f"{folder}: {sizes}.")
    return other


def _speakers_of(trials: Trials, own: Embeddings) -> npt.NDArray[np.int32]:
    """Return numbers of the speakers of both sides `(trials, 2)`: those listed, or whom target trials join."""
    rows = np.concatenate([np.arange(len(own.ids)), [members[0] for _, members in trials.models]]).astype(np.int64)
    if (own.speakers < 0).any():
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        targets = rows[trials.enrollment[trials.is_target]], rows[trials.test[trials.is_target]]
        shape = (len(own.ids), len(own.ids))
        _, speakers = connected_components(coo_matrix((np.ones(len(targets[0])), targets), shape), directed=False)
    else:
        speakers = own.speakers
    of_row = speakers[rows].astype(np.int32)
    sides = np.stack([of_row[trials.enrollment], of_row[trials.test]], axis=1)
    contradicted = int(((sides[:, 0] == sides[:, 1]) != trials.is_target).sum())
    if contradicted:
        log.warning("the labels of %s trials contradict the speakers of %s", f"{contradicted:,}", own.folder)
    return sides


def _facts(own: Embeddings, trials: Trials, settings: EvaluationConfig) -> dict[str, Any]:
    record = Record.of(own.folder)
    cohort = {"cohort": settings.cohort, "top_n": settings.top_n} if settings.cohort else {}
    return {
        "evaluated": now(),
        "embeddings": str(own.folder.absolute()),
        "model": record.model,
        **trials.source,
        "score": "AS-norm of cosine" if settings.cohort else "cosine",
        "mean": settings.mean,
        **cohort,
        **({"enrollment": settings.enrollment} if trials.models else {}),
        "llr": "natural log; logistic regression, cross-validated over speakers",
        "intervals": f"95%, {settings.bootstrap} draws of speakers",
    }


def as_text(judgement: Judgement, folder: Path) -> str:
    """Return what a person reads on a terminal."""
    found = judgement.as_json()
    heading = "{targets:,} target and {nontargets:,} nontarget trials".format(**found["trial_counts"])
    shown = [render(rows, columns, left=columns[:1]) for columns, rows in tables(found)]
    return "\n\n".join([heading, *shown, f"{CAUTION}\nresults  {relative(folder)}"])
