"""Which engine computes, where that is left to balr: the one that a folder was begun with, or what suits the work."""

from pathlib import Path

from balr.config import RunConfig
from balr.data.corpus import Corpus
from balr.runs.record import Record

WORTH_COMPILING = 500  # utterances, which take minutes; compiling takes seconds


def settle_engine(cfg: RunConfig, folder: Path | None, corpus: Corpus) -> None:
    """Put an engine in the place of `auto`: that of the folder's embeddings, else torch for little work.

    For much work it stays `auto`, which the model decides as it loads. All shards go by the size of the whole corpus.
    """
    model = cfg.embeddings["model"]
    if model.get("engine") != "auto":
        return
    record = None if folder is None else Record.of(folder, cfg.shard)
    if record and record.model and (record.forcing or not cfg.force):
        model["engine"] = record.model.get("settings", {}).get("engine", "torch")
    elif len(corpus) < WORTH_COMPILING:
        model["engine"] = "torch"
