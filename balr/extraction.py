"""One run, from a corpus to embeddings on disk: the only file that knows all stages."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from balr.config import DataConfig, RunConfig, build
from balr.data.dataset import AudioDataset
from balr.embeddings.base import EmbeddingsModel
from balr.errors import Failure, one_line
from balr.files import check_writable, held
from balr.lists import (
    DURATIONS,
    identity,
    recorded,
    refuse_another_corpus,
    refuse_another_model,
    refuse_foreign_lists,
    write_lists,
)
from balr.report import Report, Tally, shown

log = logging.getLogger(__name__)

_BROKEN_SHOWN = 10


def run(cfg: RunConfig, *, run_dir: Path) -> Report:
    """Embed a corpus as configured and report what became of each utterance.

    `run_dir` takes the lists where `save_dir` is null and embeddings go beside the audio. Raises a BalrError before the
    model is loaded where input, output or configuration are wrong; a bad utterance is part of the report.
    """
    data_config = build(cfg.data, DataConfig)
    dataset = AudioDataset.from_path(cfg.input, root_dir=cfg.root_dir, audio_formats=cfg.audio_formats)
    dataset.vector_format = cfg.vector_format
    dataset.set_output_dir(cfg.save_dir)
    lists_in = dataset.output_dir or run_dir.absolute()
    if cfg.save_output:
        check_writable(lists_in)
    audible = dataset.filter(lambda utterance: utterance.audio is not None)
    tally = Tally()
    with ExitStack() as at_the_end:
        if cfg.save_output:
            at_the_end.enter_context(held(lists_in))
            _check_destination(cfg, dataset, lists_in)
        todo = _what_is_left(audible) if cfg.save_output and not cfg.force else audible
        tally.todo = len(todo)
        log.info("%d utterances in %s, %d already there", len(dataset), cfg.input, len(audible) - len(todo))
        model = _model(cfg) if len(todo) else None
        if cfg.save_output:
            computed = at_the_end.enter_context(recorded(lists_in, _identity(cfg)))
            at_the_end.callback(_leave_lists, lists_in, dataset, tally.failures)
            if model is not None:
                at_the_end.callback(lambda: computed.update(model.how()))
        if model is not None:
            at_the_end.enter_context(tally)
            durations_file = lists_in / DURATIONS if cfg.save_output else None
            model.extract_embeddings(todo, cfg.save_output, data_config, observer=tally, durations_file=durations_file)
    return Report(
        total=len(dataset),
        embedded=tally.embedded_count,
        already_there=len(audible) - len(todo),
        without_audio=len(dataset) - len(audible),
        failures=tuple(tally.failures),
        audio_seconds=tally.audio_seconds,
        wall_seconds=tally.wall_seconds,
        vectors_in=_vectors_in(cfg, dataset),
        lists_in=lists_in if cfg.save_output else None,
    )


def _what_is_left(audible: AudioDataset) -> AudioDataset:
    """Return the utterances without an embedding, or with one that is broken, which is said and done again."""
    flaws = {utterance.id: audible.vector_flaw(utterance) for utterance in audible.utterances}
    broken = [(id_, flaw) for id_, flaw in flaws.items() if flaw not in (None, "missing")]
    for id_, flaw in broken[:_BROKEN_SHOWN]:
        log.warning("%s: its embedding is broken and made again: %s", one_line(id_), flaw)
    if len(broken) > _BROKEN_SHOWN:
        log.warning("and %d more broken embeddings, made again", len(broken) - _BROKEN_SHOWN)
    return audible.filter(lambda utterance: flaws[utterance.id] is not None)


def _model(cfg: RunConfig) -> EmbeddingsModel:
    return build(cfg.embeddings["model"], EmbeddingsModel, device=cfg.device, precision=cfg.precision)


def _identity(cfg: RunConfig) -> dict[str, Any]:
    return identity(cfg.embeddings["model"], cfg.precision)


def _check_destination(cfg: RunConfig, dataset: AudioDataset, lists_in: Path) -> None:
    refuse_foreign_lists(lists_in, cfg.input)
    if not cfg.force:
        refuse_another_model(lists_in, _identity(cfg))
        refuse_another_corpus(lists_in, dataset)


def _leave_lists(lists_in: Path, dataset: AudioDataset, failures: Sequence[Failure]) -> None:
    """Write the lists, also of a run that stops early, and remove what force was to replace and could not."""
    order = {utterance.id: number for number, utterance in enumerate(dataset.utterances)}
    failures = sorted(failures, key=lambda failure: order[failure.id])
    failed = {failure.id for failure in failures}
    for utterance in dataset.utterances:
        if utterance.id in failed:
            dataset.vector_path(utterance).unlink(missing_ok=True)
    write_lists(lists_in, dataset, failures)


def _vectors_in(cfg: RunConfig, dataset: AudioDataset) -> str:
    if not cfg.save_output:
        return "not saved (save_output=false)"
    return "beside the audio" if dataset.output_dir is None else shown(dataset.output_dir)
