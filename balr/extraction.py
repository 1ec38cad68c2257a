"""One run, from a corpus to embeddings in a store: the only file that knows all stages."""

import logging
import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from balr.composition import build
from balr.config import RunConfig
from balr.data.corpus import Corpus
from balr.errors import OutputError
from balr.records import Failure, Utterance
from balr.runs.failures import FailureLog
from balr.runs.progress import Tally, report_file
from balr.runs.provenance import corpus_facts, machine, now, software
from balr.runs.record import Facts, Record, identity
from balr.runs.summary import Summary, relative, utterances
from balr.shutdown import Stop
from balr.stores.files import FilesStore
from balr.stores.folder import locked

if TYPE_CHECKING:  # a finished corpus needs no torch
    from balr.embeddings.base import EmbeddingsModel

log = logging.getLogger(__name__)

_DURATIONS = "durations.csv"


def run(cfg: RunConfig, *, run_dir: Path, stop: Stop, job: str = "embedding") -> Summary:
    """Embed a corpus as configured and add up what became of each utterance.

    `run_dir` takes the lists where `save_dir` is null and embeddings go beside the audio; `job` names the run on a
    progress bar. Raises a BalrError before the model is loaded where input, output or configuration are wrong; a bad
    utterance is part of the summary. When `stop` is set, what is being computed is finished and saved.
    """
    corpus = Corpus.from_path(cfg.input, root_dir=cfg.root_dir, audio_formats=cfg.audio_formats, channel=cfg.channel)
    corpus.vector_format = cfg.vector_format
    corpus.set_output_dir(cfg.save_dir)
    if not cfg.save_output:
        return _compute_only(cfg, corpus, stop, job)
    folder = corpus.output_dir or run_dir.absolute()
    source = os.path.realpath(os.path.expanduser(cfg.input))
    if os.path.isfile(source) and os.path.dirname(source) == os.path.realpath(folder):
        raise OutputError(f"{cfg.input}: lies in save_dir, whose lists are overwritten; choose another save_dir.")
    with locked(folder):
        files = _open(folder, cfg, corpus)
        left = [utterance for utterance in _audible(corpus) if utterance.id not in files.completed]
        log.info("%s in %s, %d already there", utterances(len(corpus)), cfg.input, len(files.completed))
        facts = {"started": now(), "corpus": corpus_facts(corpus, cfg.input), "vector_format": cfg.vector_format}
        model = _model(cfg) if left else None
        if model is not None:
            facts |= model.describe()
            files.begin(model, corpus)
        tally = Tally(todo=len(left), job=job, report_to=report_file(run_dir))
        with files.record.of_run({**facts, "hydra": str(run_dir.absolute()), **software(), **machine()}) as entry:
            try:
                if model is not None:
                    _embed(model, cfg, corpus, _Follower(tally, files, stop if cfg.fail_fast else None), stop)
                    entry.update(model.execution_facts())
                files.close()
            except OutputError as error:
                saved = f"This run saved {tally.embedded_count} of {utterances(tally.todo)}"
                raise OutputError(f"{error} {saved}; the same command goes on from there.") from error
            finally:
                summary = _summary(cfg, corpus, tally, files)
                entry.update(summary.facts())
            files.record.forcing &= summary.not_reached > 0
            entry["exit"] = _how_it_stopped(stop)
    return summary


@dataclass(frozen=True)
class _RunFiles:
    """The files of a run's folder: embeddings with their manifest, failures, record. `completed` at its start."""

    store: FilesStore
    failures: FailureLog
    record: Record
    model: Facts
    completed: Set[str]
    starts_over: bool

    def begin(self, model: "EmbeddingsModel", corpus: Corpus) -> None:
        """Note whose embeddings the folder holds from now on; where they replace others, after those are gone."""
        if self.starts_over:
            self.store.clear()
            self.failures.clear()
        self.record.model, self.record.embedding_dim = self.model, model.embedding_dim
        self.record.corpus_root = os.path.realpath(corpus.root_dir)
        self.record.forcing |= self.starts_over

    def close(self) -> None:
        """Put the lists into their final order."""
        self.store.close()
        self.failures.finish(self.store.completed())


def _open(folder: Path, cfg: RunConfig, corpus: Corpus) -> _RunFiles:
    """Read what a locked folder holds. Raises OutputError where that is of another corpus or model."""
    record, model = Record.of(folder), identity(cfg.embeddings["model"], cfg.precision)
    record.refuse_another_corpus(corpus.root_dir)
    store = FilesStore(
        folder,
        corpus.utterances,
        root=corpus.root_dir,
        format=cfg.vector_format,
        beside_audio=corpus.output_dir is None,
        embedding_dim=record.embedding_dim,
    )
    completed = frozenset(store.completed())
    if completed and not cfg.force and corpus.output_dir is not None:
        record.refuse_another_model(model)
    starts_over = cfg.force and not (record.forcing and record.is_of(model))
    failures = FailureLog(folder, corpus.utterances)
    return _RunFiles(store, failures, record, model, frozenset() if starts_over else completed, starts_over)


class _Follower:
    """Follow a model through a corpus: count, keep failures.csv, ask for a stop at the first failure where wanted."""

    def __init__(self, tally: Tally, files: _RunFiles | None, stop_at_failure: Stop | None) -> None:
        self.tally = tally
        self.files = files
        self._computed_again = frozenset() if files is None else files.completed  # with a batch that was cut short
        self._stop_at_failure = stop_at_failure

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        self.tally.planned(audio_seconds, upsampled=upsampled)

    def under_way(self, audio_seconds: float) -> None:
        self.tally.under_way(audio_seconds)

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None:
        if utterance.id not in self._computed_again:
            self.tally.embedded(audio_seconds)

    def failed(self, failure: Failure) -> None:
        if failure.id in self._computed_again:
            return
        self.tally.failed(failure)
        if self.files is not None:
            self.files.failures.add(failure)
        if self._stop_at_failure is not None:
            self._stop_at_failure.set()


def _compute_only(cfg: RunConfig, corpus: Corpus, stop: Stop, job: str) -> Summary:
    log.info("%s in %s", utterances(len(corpus)), cfg.input)
    tally = Tally(todo=len(_audible(corpus)), job=job)
    _embed(_model(cfg), cfg, corpus, _Follower(tally, None, stop if cfg.fail_fast else None), stop)
    return _summary(cfg, corpus, tally, None)


def _model(cfg: RunConfig) -> "EmbeddingsModel":
    from balr.embeddings.base import EmbeddingsModel

    return build(cfg.embeddings["model"], EmbeddingsModel, device=cfg.device, precision=cfg.precision)


def _embed(model: "EmbeddingsModel", cfg: RunConfig, corpus: Corpus, follower: _Follower, stop: Stop) -> None:
    """Run the pipeline over what is left of a corpus."""
    from balr.data.dataset import AudioDataset

    files = follower.files
    with follower.tally:
        model.extract_embeddings(
            AudioDataset.of(corpus),
            files is not None,
            cfg.data,
            store=None if files is None else files.store,
            failed_before=() if files is None else files.failures.ids,
            observer=follower,
            durations_file=None if files is None else files.store.folder / _DURATIONS,
            stop=stop,
        )


def _audible(corpus: Corpus) -> list[Utterance]:
    return [utterance for utterance in corpus.utterances if utterance.audio is not None]


def _how_it_stopped(stop: Stop) -> str | None:
    if not stop.is_set():
        return None
    return f"interrupted by {stop.signal_name}" if stop.signal_name else "stopped at the first failure"


def _summary(cfg: RunConfig, corpus: Corpus, tally: Tally, files: _RunFiles | None) -> Summary:
    beside = "beside the audio" if corpus.output_dir is None else relative(corpus.output_dir)
    audible = len(_audible(corpus))
    return Summary(
        total=len(corpus),
        embedded=tally.embedded_count,
        already_there=audible - tally.todo,
        without_audio=len(corpus) - audible,
        failures=tuple(tally.failures),
        upsampled=tally.upsampled,
        audio_seconds=tally.audio_seconds,
        wall_seconds=tally.wall_seconds,
        embeddings_in=beside if cfg.save_output else "not saved (save_output=false)",
        lists_in=None if files is None else files.store.folder,
    )
