"""The files of a run's folder: a store of embeddings, failures.csv and run.json, opened and closed together."""

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from balr.composition import build, settle_engine
from balr.config import RunConfig
from balr.data.containers import container_of
from balr.data.corpus import Corpus
from balr.errors import ConfigError, OutputError
from balr.records import WHOLE_CORPUS, Shard
from balr.runs.failures import FailureLog
from balr.runs.record import Facts, Record, identity
from balr.stores.base import Store, StoredCorpus
from balr.stores.folder import locked


@dataclass(frozen=True)
class RunFolder:
    """What a locked folder holds of a corpus; `completed` and `starts_over` as the run found it."""

    path: Path
    store: Store
    failures: FailureLog
    record: Record
    model: Facts
    completed: Set[str]
    starts_over: bool = False

    def begin(self, embedding_dim: int | None, corpus: Corpus, described: Facts) -> None:
        """Note whose embeddings the folder holds from now on; where they replace others, after those are gone.

        `described`: what the loaded model says of itself. Raises OutputError where others are by other weights.
        """
        if self.completed:
            self.record.refuse_other_weights(described.get("checkpoint", {}))
        self.model["settings"]["engine"] = described.get("engine", "torch")
        if self.starts_over:
            self.store.clear()
            self.failures.clear()
        self.record.model, self.record.embedding_dim = self.model, embedding_dim
        self.record.corpus_root = os.path.realpath(corpus.root_dir)
        self.record.forcing |= self.starts_over

    def close(self) -> None:
        """Put the lists into their final order."""
        self.store.close()
        self.failures.finish(self.store.completed())

    def missing(self, corpus: Corpus) -> Set[str]:
        """Return the utterances with audio that have neither an embedding nor a failure."""
        audible = {utterance.id for utterance in corpus.utterances if utterance.audio is not None}
        return audible - self.store.completed() - self.failures.ids


def open_folder(folder: Path, cfg: RunConfig, corpus: Corpus, shard: Shard) -> RunFolder:
    """Read what a locked folder holds. Raises OutputError where that is of another corpus, model or store."""
    record = Record.of(folder, shard)
    settle_engine(cfg, len(corpus), begun_with=record.engine if record.forcing or not cfg.force else None)
    model = identity(cfg.embeddings["model"], cfg.precision)
    settings: Any = OmegaConf.to_container(cfg.store, resolve=True)
    record.refuse_another_corpus(corpus.root_dir)
    record.refuse_another_store(settings)
    store = _build_store(folder, settings, corpus, shard, record)
    completed = frozenset(store.completed())
    if completed and not cfg.force and corpus.output_dir is not None:
        record.refuse_another_model(model)
    if not cfg.force:
        record.refuse_another_channel(cfg.channel)
    if cfg.force and shard.tag:
        raise ConfigError(
            "force=true with shard.count: shards would remove the work of others; remove save_dir instead."
        )
    begun = (record.model.get("files"), record.model.get("settings"), record.corpus.get("channel"))
    starts_over = cfg.force and not (record.forcing and begun == (model["files"], model["settings"], cfg.channel))
    record.store = settings
    record.corpus = {
        "input": os.path.abspath(os.path.expanduser(cfg.input)),
        "root_dir": None if cfg.root_dir is None else os.path.abspath(os.path.expanduser(cfg.root_dir)),
        "audio_formats": list(cfg.audio_formats),
        "channel": cfg.channel,
    }
    failures = FailureLog(folder, corpus.utterances, shard)
    return RunFolder(folder, store, failures, record, model, frozenset() if starts_over else completed, starts_over)


@contextmanager
def reopened(folder: Path) -> Iterator[tuple[RunFolder, Corpus]]:
    """Lock a folder and open it as its record says, with the whole corpus. Raises a BalrError."""
    with locked(folder):
        record = Record.of(folder)
        if not record.store or not record.corpus:
            raise OutputError(f"{folder}: no run.json that says of which corpus it is; give the save_dir of a run.")
        corpus = corpus_of(record)
        corpus.set_output_dir(folder)
        store = _build_store(folder, record.store, corpus, WHOLE_CORPUS, record)
        failures = FailureLog(folder, corpus.utterances)
        yield RunFolder(folder, store, failures, record, record.model, store.completed()), corpus


def corpus_of(record: Record, source: str | None = None) -> Corpus:
    """Read the corpus of a record, or a `source` in its place, as the run read it. Raises InputError."""
    settings = dict(record.corpus)
    recorded = settings.pop("input", "")
    return Corpus.from_path(source or recorded, **settings)


def _build_store(folder: Path, settings: Facts, corpus: Corpus, shard: Shard, record: Record) -> Store:
    is_beside_audio = corpus.output_dir is None
    if is_beside_audio and (
        shard.tag
        or not str(settings.get("_target_")).endswith(".FilesStore")
        or any(container_of(one.audio) for one in corpus.utterances if one.audio)
    ):
        raise ConfigError(
            "save_dir=null: embeddings beside the audio are files of one job, and none can go beside audio that is in "
            "a tar or parquet file; choose a save_dir."
        )
    place = StoredCorpus(folder, corpus.utterances, corpus.root_dir, shard, record.embedding_dim, is_beside_audio)
    return build(settings, Store, corpus=place)
