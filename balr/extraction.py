"""One run, from a corpus to embeddings in a store: the only file that knows all stages."""

import gc
import logging
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balr.composition import build, settle_engine
from balr.config import RunConfig
from balr.data.corpus import Corpus
from balr.data.sharding import shard_of
from balr.errors import LockedError, OutputError
from balr.records import Failure, Utterance
from balr.reuse import reuse_beside
from balr.runs.folder import RunFolder, open_folder, reopened
from balr.runs.progress import Tally, report_file
from balr.runs.provenance import corpus_facts, machine, now, software
from balr.runs.record import Facts
from balr.runs.summary import Summary, relative, utterances
from balr.shutdown import Stop
from balr.stores.folder import locked

if TYPE_CHECKING:  # a finished corpus needs no torch
    from balr.embeddings.base import EmbeddingsModel

log = logging.getLogger(__name__)

_DURATIONS = "durations{}.csv"


def run(cfg: RunConfig, *, run_dir: Path, stop: Stop, job: str = "embedding") -> Summary:
    """Embed a corpus as configured and add up what became of each utterance.

    `run_dir` takes the lists where `save_dir` is null and embeddings go beside the audio; `job` names the run on a
    progress bar. Raises a BalrError before the model is loaded where input, output or configuration are wrong; a bad
    utterance is part of the summary. When `stop` is set, what is being computed is finished and saved.
    """
    corpus = _corpus(cfg)
    part = shard_of(corpus, cfg.shard)
    if not cfg.save_output:
        settle_engine(cfg, len(corpus))
        return _compute_only(cfg, part, stop, job)
    folder = corpus.output_dir or run_dir.absolute()
    _refuse_input_in(folder, cfg.input)
    with locked(folder, cfg.shard):
        files = open_folder(folder, cfg, corpus, cfg.shard)
        left = [utterance for utterance in _audible(part) if utterance.id not in files.completed]
        _log_start(cfg, part, left)
        facts: Facts = {"started": now(), "corpus": corpus_facts(part, cfg.input), "shard": asdict(cfg.shard)}
        model = _model(cfg) if left else None
        if model is not None:
            facts |= model.describe()
            files.begin(model.embedding_dim, corpus, facts)
        tally = _Follower(files, cfg, stop, todo=len(left), job=job, report_to=report_file(run_dir))
        with files.record.of_run({**facts, "hydra": str(run_dir.absolute()), **software(), **machine()}) as entry:
            try:
                if model is not None:
                    rest = _reuse(part, files, model.embedding_dim, tally, entry, stop) if cfg.reuse_beside else part
                    _embed(model, cfg, rest, tally, stop)
                    entry.update(model.execution_facts())
                files.close()
            except OutputError as error:
                saved = f"This run saved {tally.embedded_count} of {utterances(tally.todo)}"
                raise OutputError(f"{error} {saved}; the same command goes on from there.") from error
            finally:
                summary = _summary(cfg, part, tally, files)
                entry.update(summary.facts())
            files.record.forcing &= summary.not_reached > 0
            entry["exit"] = _how_it_stopped(stop)
    if cfg.shard.tag and not summary.not_reached:
        with suppress(LockedError):  # other shards still work, of which the last one will do it
            merge(folder, only_if_complete=True)
    return summary


def merge(folder: Path, *, only_if_complete: bool = False) -> tuple[int, int, int]:
    """Put the lists of shards together to those of one corpus; again, this changes nothing.

    Returns how many utterances have an embedding, failed, and are missing. `only_if_complete`: unless some are missing.
    Raises a BalrError.
    """
    with reopened(folder) as (files, corpus):
        missing = len(files.missing(corpus))
        if only_if_complete and not missing:
            log.info("all shards are done, and their lists are put together in %s", relative(folder))
        if not only_if_complete or not missing:
            files.close()
            files.record.forcing &= missing > 0
            files.record.write()
        return len(files.store.completed()), len(files.failures.ids - files.store.completed()), missing


def _corpus(cfg: RunConfig) -> Corpus:
    corpus = Corpus.from_path(cfg.input, root_dir=cfg.root_dir, audio_formats=cfg.audio_formats, channel=cfg.channel)
    corpus.vector_format = cfg.vector_format
    corpus.set_output_dir(cfg.save_dir)
    if cfg.evaluation is not None and cfg.evaluation.trials is None:  # of all pairs, once all is embedded
        from balr.evaluation.source import refuse_unknown_speakers

        refuse_unknown_speakers([one.id for one in corpus.utterances], [one.speaker for one in corpus.utterances])
    return corpus


def _refuse_input_in(folder: Path, source: str) -> None:
    path = os.path.realpath(os.path.expanduser(source))
    if os.path.isfile(path) and os.path.dirname(path) == os.path.realpath(folder):
        raise OutputError(f"{source}: lies in save_dir, whose lists are overwritten; choose another save_dir.")
    if path == os.path.realpath(folder):  # the next run would take its embeddings for the corpus
        raise OutputError(f"{source}: is save_dir, too; choose another, or save_dir=null to write beside the audio.")


class _Follower(Tally):
    """Follow a model through a corpus: count, keep failures.csv, ask for a stop at the first failure where wanted."""

    def __init__(self, files: RunFolder | None, cfg: RunConfig, stop: Stop, **shown: Any) -> None:
        super().__init__(**shown)
        self.files = files
        self._stop_at_failure = stop if cfg.fail_fast else None

    def failed(self, failure: Failure) -> None:
        super().failed(failure)
        if self.files is not None:
            self.files.failures.add(failure)
        if self._stop_at_failure is not None:
            self._stop_at_failure.set()


def _compute_only(cfg: RunConfig, corpus: Corpus, stop: Stop, job: str) -> Summary:
    log.info("%s in %s", utterances(len(corpus)), cfg.input)
    tally = _Follower(None, cfg, stop, todo=len(_audible(corpus)), job=job)
    _embed(_model(cfg), cfg, corpus, tally, stop)
    return _summary(cfg, corpus, tally, None)


def _model(cfg: RunConfig) -> "EmbeddingsModel":
    gc.disable()  # which finds nothing to free in the objects that importing torch makes, and takes time
    try:
        from balr.embeddings.base import EmbeddingsModel

        return build(cfg.embeddings["model"], EmbeddingsModel, device=cfg.device, precision=cfg.precision)
    finally:
        gc.enable()


def _embed(model: "EmbeddingsModel", cfg: RunConfig, corpus: Corpus, follower: _Follower, stop: Stop) -> None:
    """Run the pipeline over what is left of a corpus."""
    from balr.data.dataset import AudioDataset

    files = follower.files
    with follower:
        model.extract_embeddings(
            AudioDataset.of(corpus),
            files is not None,
            cfg.data,
            store=None if files is None else files.store,
            failed_before=() if files is None else files.failures.ids,
            observer=follower,
            durations_file=None if files is None else files.path / _DURATIONS.format(cfg.shard.tag),
            stop=stop,
        )


def _log_start(cfg: RunConfig, part: Corpus, left: list[Utterance]) -> None:
    of = f"part {cfg.shard.index} of {cfg.shard.count} of " if cfg.shard.tag else ""
    log.info("%s in %s%s, %d already there", utterances(len(part)), of, cfg.input, len(_audible(part)) - len(left))


def _reuse(corpus: Corpus, files: RunFolder, dim: int | None, tally: Tally, entry: Facts, stop: Stop) -> Corpus:
    """Take over what lies beside the audio, and return the corpus without it.

    Batches are planned without it, too, in every run: one that is cut short is computed and saved as a whole.
    """
    try:
        beside = reuse_beside(_audible(corpus), files.store, embedding_dim=dim, stop=stop)
    finally:
        entry["reused_beside"] = len(files.store.completed() - files.completed)
        tally.todo -= entry["reused_beside"]
    return corpus.filter(lambda utterance: utterance.id not in beside)


def _audible(corpus: Corpus) -> list[Utterance]:
    return [utterance for utterance in corpus.utterances if utterance.audio is not None]


def _how_it_stopped(stop: Stop) -> str | None:
    if not stop.is_set():
        return None
    return f"interrupted by {stop.signal_name}" if stop.signal_name else "stopped at the first failure"


def _summary(cfg: RunConfig, corpus: Corpus, tally: Tally, files: RunFolder | None) -> Summary:
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
        lists=None if files is None else (files.store.listing, files.failures.path),
    )
