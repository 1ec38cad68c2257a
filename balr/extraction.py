"""One run, from a corpus to embeddings on disk: the only file that knows all stages."""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from balr.atomic import check_writable, locked, remove
from balr.composition import build
from balr.config import DataConfig, RunConfig
from balr.data.corpus import Corpus
from balr.errors import Failure, OutputError, one_line
from balr.lists import (
    DURATIONS,
    FailureList,
    refuse_foreign_lists,
    refuse_names_of_lists,
    refuse_to_replace_a_part,
    vouched_for,
    write_metadata,
    write_planned,
)
from balr.records import Utterance
from balr.runs.progress import Report, Tally, shown, tracked
from balr.runs.provenance import corpus_facts, machine, now, software
from balr.runs.record import Record, identity
from balr.shutdown import Stop
from balr.stores.embedding_files import MISSING

if TYPE_CHECKING:  # a finished corpus needs no torch
    from balr.embeddings.base import EmbeddingsModel

log = logging.getLogger(__name__)

_BROKEN_SHOWN = 10


def run(cfg: RunConfig, *, run_dir: Path, stop: Stop) -> Report:
    """Embed a corpus as configured and report what became of each utterance.

    `run_dir` takes the lists where `save_dir` is null and embeddings go beside the audio. Raises a BalrError before the
    model is loaded where input, output or configuration are wrong; a bad utterance is part of the report. When `stop`
    is set, what is being computed is finished and saved.
    """
    data_config = cfg.data
    corpus = Corpus.from_path(cfg.input, root_dir=cfg.root_dir, audio_formats=cfg.audio_formats, channel=cfg.channel)
    corpus.vector_format = cfg.vector_format
    corpus.set_output_dir(cfg.save_dir)
    if cfg.save_output:
        folder = corpus.output_dir or run_dir.absolute()
        check_writable(folder)
        with locked(folder):
            return _run_in(folder, cfg, corpus, data_config, run_dir=run_dir, stop=stop)
    todo = _audible(corpus)
    log.info("%d utterances in %s", len(corpus), cfg.input)
    follower = _Follower(Tally(todo=len(todo)), stop if cfg.fail_fast else None)
    _embed(_model(cfg), todo, data_config, follower, stop)
    return _report(cfg, corpus, follower.tally, None)


class _Follower:
    """Follow a model through a corpus: count, note whose embedding is there, keep failures.csv."""

    def __init__(
        self,
        tally: Tally,
        stop_at_failure: Stop | None,
        *,
        done: set[str] | None = None,
        failure_list: FailureList | None = None,
    ) -> None:
        self.tally = tally
        self.done = set() if done is None else done
        self._failure_list = failure_list
        self._stop_at_failure = stop_at_failure

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        self.tally.planned(audio_seconds, upsampled=upsampled)

    def embedded(self, utterance: Utterance, audio_seconds: float) -> None:
        self.done.add(utterance.id)
        self.tally.embedded(audio_seconds)
        if self._failure_list is not None:
            self._failure_list.write_if_due()

    def failed(self, failure: Failure) -> None:
        self.done.discard(failure.id)
        self.tally.failed(failure)
        if self._failure_list is not None:
            self._failure_list.add(failure)
        if self._stop_at_failure is not None:
            self._stop_at_failure.set()


def _run_in(
    folder: Path, cfg: RunConfig, corpus: Corpus, data_config: DataConfig, *, run_dir: Path, stop: Stop
) -> Report:
    """Run in a folder that is held, and leave its lists and its record true."""
    started = now()
    model_identity = identity(cfg.embeddings["model"], cfg.precision)
    record = Record.of(folder)
    record.refuse_another_corpus(corpus.root_dir)
    refuse_foreign_lists(folder, cfg.input)
    refuse_names_of_lists(folder, corpus)
    corpus.refuse_foreign_folders()
    if not cfg.force:
        record.refuse_another_model(model_identity)
    elif record.replacing or record.model != model_identity:
        refuse_to_replace_a_part(folder, corpus)
    stale = _not_vouched_for(folder, corpus, record, force=cfg.force)
    todo = _audible(corpus) if cfg.force else _what_is_left(_audible(corpus), record, stale)
    log.info("%d utterances in %s, %d already there", len(corpus), cfg.input, len(_audible(corpus)) - len(todo))
    left = {utterance.id for utterance in todo.utterances}
    done = {utterance.id for utterance in corpus.utterances} - left
    tally = Tally(todo=len(todo))
    failure_list = FailureList(folder, corpus, done)
    follower = _Follower(tally, stop if cfg.fail_fast else None, done=done, failure_list=failure_list)
    model = _model(cfg) if len(todo) else None
    facts = {
        "started": started,
        "corpus": corpus_facts(corpus, cfg.input),
        **({} if model is None else model.describe()),
    }
    facts |= {"vector_format": cfg.vector_format, "hydra": str(run_dir.absolute())}
    facts |= {"software": software(), "machine": machine()}
    if model is not None:
        for utterance in stale:
            remove(corpus.vector_path(utterance))
        record.made_by(model_identity, embedding_dim=model.embedding_dim, root=corpus.root_dir)
    with record.of_run(facts) as entry, ExitStack() as at_the_end:
        at_the_end.callback(lambda: entry.update(_report(cfg, corpus, tally, folder).facts()))
        at_the_end.enter_context(_leaving_lists(folder, corpus, follower, failure_list, force=cfg.force))
        if model is not None:
            at_the_end.callback(lambda: entry.update(model.execution_facts()))
            write_planned(folder, corpus, todo)
            _embed(model, todo, data_config, follower, stop, durations_file=folder / DURATIONS)
        if stop.is_set():
            entry["exit"] = f"interrupted by {stop.signal_name}" if stop.signal_name else "stopped at the first failure"
    return _report(cfg, corpus, tally, folder)


def _audible(corpus: Corpus) -> Corpus:
    return corpus.filter(lambda utterance: utterance.audio is not None)


def _not_vouched_for(folder: Path, corpus: Corpus, record: Record, *, force: bool) -> list[Utterance]:
    """Return the utterances in whose place is an embedding that no list tells to be theirs, or no record by what."""
    if corpus.output_dir is None:  # beside the audio there are no lists of earlier runs
        return []
    known = vouched_for(folder, corpus, force=force) if record.model else ()
    others = (u for u in corpus.utterances if u.audio is not None and u.id not in known)
    return [utterance for utterance in others if os.path.lexists(corpus.vector_file(utterance))]


def _what_is_left(audible: Corpus, record: Record, stale: Collection[Utterance]) -> Corpus:
    """Return the utterances without an embedding of their own, or with one that is broken, which is said."""
    there = tracked(audible.utterances, "reading embeddings")
    flaws = {utterance.id: audible.vector_flaw(utterance, dim=record.embedding_dim) for utterance in there}
    if audible.output_dir is not None and not record.model and any(flaw != MISSING for flaw in flaws.values()):
        raise OutputError(
            f"{record.folder}: holds embeddings and no run.json that tells what made them; choose another save_dir, or "
            "force=true to make them again."
        )
    flaws |= {utterance.id: "no list tells that it is of this audio" for utterance in stale}
    broken = [(id_, flaw) for id_, flaw in flaws.items() if flaw not in (None, MISSING)]
    for id_, flaw in broken[:_BROKEN_SHOWN]:
        log.warning("%s: its embedding is made again: %s", one_line(id_), flaw)
    if len(broken) > _BROKEN_SHOWN:
        log.warning("and %d more embeddings that are made again", len(broken) - _BROKEN_SHOWN)
    return audible.filter(lambda utterance: flaws[utterance.id] is not None)


def _model(cfg: RunConfig) -> "EmbeddingsModel":
    from balr.embeddings.base import EmbeddingsModel

    return build(cfg.embeddings["model"], EmbeddingsModel, device=cfg.device, precision=cfg.precision)


def _embed(
    model: "EmbeddingsModel",
    todo: Corpus,
    data_config: DataConfig,
    follower: _Follower,
    stop: Stop,
    *,
    durations_file: Path | None = None,
) -> None:
    """Embed, and save where lengths are kept, too."""
    from balr.data.dataset import AudioDataset

    dataset, save = AudioDataset.of(todo), durations_file is not None
    with follower.tally:
        model.extract_embeddings(
            dataset, save, data_config, observer=follower, durations_file=durations_file, stop=stop
        )


@contextmanager
def _leaving_lists(
    folder: Path, corpus: Corpus, follower: _Follower, failure_list: FailureList, *, force: bool
) -> Iterator[None]:
    """Write the lists, also of a run that stops early; where nothing can be written any more, say what is saved."""
    tally = follower.tally

    def leave() -> None:
        if force:
            _let_go(corpus, follower.done, {failure.id for failure in tally.failures})
        failure_list.write()
        write_metadata(folder, corpus, follower.done)

    try:
        yield
        leave()
    except OutputError as error:
        lists = "the lists tell of them"
        try:
            leave()
        except OutputError:
            lists = "the next run lists them"
        raise OutputError(
            f"{error} This run saved {tally.embedded_count} of {tally.todo} embeddings, and {lists}."
        ) from error
    except BaseException:
        leave()
        raise


def _let_go(corpus: Corpus, done: set[str], failed: set[str]) -> None:
    """Remove what was to be replaced and could not be, and take as done what a run that was stopped did not reach."""
    made = {corpus.vector_file(u) for u in corpus.utterances if u.audio is not None and u.id in done} if failed else ()
    for utterance in corpus.utterances:
        if utterance.audio is None or utterance.id in done:
            continue
        place = corpus.vector_file(utterance)
        if utterance.id not in failed:
            done |= {utterance.id} if os.path.isfile(place) else set()
        elif place not in made:  # by another id of the same audio
            remove(Path(place))


def _report(cfg: RunConfig, corpus: Corpus, tally: Tally, lists_in: Path | None) -> Report:
    vectors_in = "beside the audio" if corpus.output_dir is None else shown(corpus.output_dir)
    audible = len(_audible(corpus))
    return Report(
        total=len(corpus),
        embedded=tally.embedded_count,
        already_there=audible - tally.todo,
        without_audio=len(corpus) - audible,
        failures=tuple(tally.failures),
        upsampled=tally.upsampled,
        audio_seconds=tally.audio_seconds,
        wall_seconds=tally.wall_seconds,
        vectors_in=vectors_in if cfg.save_output else "not saved (save_output=false)",
        lists_in=lists_in,
    )
