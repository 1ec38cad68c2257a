"""One run, from a corpus to embeddings on disk: the only file that knows all stages."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from balr.config import DataConfig, RunConfig, build
from balr.data.corpus import Corpus
from balr.errors import Failure, FirstFailureError, OutputError, one_line
from balr.files import check_writable, held, remove
from balr.lists import (
    DURATIONS,
    FailureList,
    refuse_another_corpus,
    refuse_foreign_lists,
    refuse_names_of_lists,
    refuse_to_replace_a_part,
    write_metadata,
)
from balr.provenance import corpus_facts, machine, now, software
from balr.record import Record, identity
from balr.report import Report, Tally, shown, tracked

if TYPE_CHECKING:  # a finished corpus needs no torch
    from balr.data.dataset import AnnotatedAudio
    from balr.embeddings.base import EmbeddingsModel

log = logging.getLogger(__name__)

_BROKEN_SHOWN = 10


def run(cfg: RunConfig, *, run_dir: Path) -> Report:
    """Embed a corpus as configured and report what became of each utterance.

    `run_dir` takes the lists where `save_dir` is null and embeddings go beside the audio. Raises a BalrError before the
    model is loaded where input, output or configuration are wrong; a bad utterance is part of the report.
    """
    data_config = build(cfg.data, DataConfig)
    corpus = Corpus.from_path(cfg.input, root_dir=cfg.root_dir, audio_formats=cfg.audio_formats)
    corpus.vector_format = cfg.vector_format
    corpus.set_output_dir(cfg.save_dir)
    if cfg.save_output:
        folder = corpus.output_dir or run_dir.absolute()
        check_writable(folder)
        with held(folder):
            return _run_in(folder, cfg, corpus, data_config)
    todo = _audible(corpus)
    log.info("%d utterances in %s", len(corpus), cfg.input)
    follower = _Follower(Tally(todo=len(todo)), fail_fast=cfg.fail_fast)
    _embed(_model(cfg), todo, data_config, follower)
    return _report(cfg, corpus, follower.tally, None)


class _Follower:
    """Follow a model through a corpus: count, note whose embedding is there, keep failures.csv."""

    def __init__(
        self, tally: Tally, *, fail_fast: bool, done: set[str] | None = None, failure_list: FailureList | None = None
    ) -> None:
        self.tally = tally
        self.done = set() if done is None else done
        self._failure_list = failure_list
        self._fail_fast = fail_fast

    def planned(self, audio_seconds: float, *, upsampled: int) -> None:
        self.tally.planned(audio_seconds, upsampled=upsampled)

    def embedded(self, utterance: "AnnotatedAudio", audio_seconds: float) -> None:
        self.done.add(utterance.id)
        self.tally.embedded(audio_seconds)
        if self._failure_list is not None:
            self._failure_list.write_if_due()

    def failed(self, failure: Failure) -> None:
        self.done.discard(failure.id)
        self.tally.failed(failure)
        if self._failure_list is not None:
            self._failure_list.add(failure)
        if self._fail_fast:
            self._fail_fast = False  # what is in hand is finished, and may fail, too
            raise FirstFailureError(f"{failure.id}: failed, and fail_fast=true.")


def _run_in(folder: Path, cfg: RunConfig, corpus: Corpus, data_config: DataConfig) -> Report:
    """Run in a folder that is held, and leave its lists and its record true."""
    started = now()
    model_identity = identity(cfg.embeddings["model"], cfg.precision)
    record = Record.of(folder)
    refuse_foreign_lists(folder, cfg.input)
    refuse_names_of_lists(folder, corpus)
    corpus.refuse_links()
    if not cfg.force:
        record.refuse_another_model(model_identity)
        refuse_another_corpus(folder, corpus)
    elif record.model and record.model != model_identity:
        refuse_to_replace_a_part(folder, corpus)
    todo = _audible(corpus) if cfg.force else _what_is_left(_audible(corpus), record.embedding_dim)
    log.info("%d utterances in %s, %d already there", len(corpus), cfg.input, len(_audible(corpus)) - len(todo))
    left = {utterance.id for utterance in todo.utterances}
    done = {utterance.id for utterance in corpus.utterances} - left
    tally = Tally(todo=len(todo))
    failure_list = FailureList(folder, corpus, done)
    follower = _Follower(tally, fail_fast=cfg.fail_fast, done=done, failure_list=failure_list)
    model = _model(cfg) if len(todo) else None
    facts = {"started": started, "corpus": corpus_facts(corpus, cfg.input), **({} if model is None else model.about())}
    facts |= {"software": software(), "machine": machine()}
    if model is not None:
        record.made_by(model_identity, embedding_dim=model.embedding_dim)
    with record.of_run(facts) as entry, ExitStack() as at_the_end:
        at_the_end.callback(lambda: entry.update(_report(cfg, corpus, tally, folder).facts()))
        at_the_end.enter_context(_leaving_lists(folder, corpus, follower, failure_list, force=cfg.force))
        if model is not None:
            at_the_end.callback(lambda: entry.update(model.how()))
            _embed(model, todo, data_config, follower, durations_file=folder / DURATIONS)
        if cfg.fail_fast and tally.failures:
            entry["exit"] = "stopped at the first failure"
    return _report(cfg, corpus, tally, folder)


def _audible(corpus: Corpus) -> Corpus:
    return corpus.filter(lambda utterance: utterance.audio is not None)


def _what_is_left(audible: Corpus, dim: int | None) -> Corpus:
    """Return the utterances without an embedding, or with one that is broken, which is said and done again."""
    there = tracked(audible.utterances, "reading embeddings")
    flaws = {utterance.id: audible.vector_flaw(utterance, dim=dim) for utterance in there}
    broken = [(id_, flaw) for id_, flaw in flaws.items() if flaw not in (None, "missing")]
    for id_, flaw in broken[:_BROKEN_SHOWN]:
        log.warning("%s: its embedding is broken and made again: %s", one_line(id_), flaw)
    if len(broken) > _BROKEN_SHOWN:
        log.warning("and %d more broken embeddings, made again", len(broken) - _BROKEN_SHOWN)
    return audible.filter(lambda utterance: flaws[utterance.id] is not None)


def _model(cfg: RunConfig) -> "EmbeddingsModel":
    from balr.embeddings.base import EmbeddingsModel

    return build(cfg.embeddings["model"], EmbeddingsModel, device=cfg.device, precision=cfg.precision)


def _embed(
    model: "EmbeddingsModel",
    todo: Corpus,
    data_config: DataConfig,
    follower: _Follower,
    *,
    durations_file: Path | None = None,
) -> None:
    """Embed, and save where lengths are kept, too; what fail_fast stops ends like any other run."""
    from balr.data.dataset import AudioDataset

    dataset, save = AudioDataset.of(todo), durations_file is not None
    with follower.tally, suppress(FirstFailureError):
        model.extract_embeddings(dataset, save, data_config, observer=follower, durations_file=durations_file)


@contextmanager
def _leaving_lists(
    folder: Path, corpus: Corpus, follower: _Follower, failure_list: FailureList, *, force: bool
) -> Iterator[None]:
    """Write the lists, also of a run that stops early; where nothing can be written any more, say what is saved."""
    tally = follower.tally

    def leave() -> None:
        failed = {failure.id for failure in tally.failures}
        for utterance in corpus.utterances if force else ():
            if utterance.id in failed:  # its embedding was to be replaced and could not
                remove(corpus.vector_path(utterance))
            elif utterance.id not in follower.done and corpus.has_vector(utterance):
                follower.done.add(utterance.id)
        failure_list.write()
        write_metadata(folder, corpus, follower.done)

    try:
        yield
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
    leave()


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
