"""Scores and stores with known answers, and WeSpeaker's own metrics, for tests of the evaluation."""

import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import numpy.typing as npt

from balr.config import EvaluationConfig
from balr.evaluate import evaluate
from balr.evaluation.judgement import Judgement
from balr.records import NOTHING, Embedded, Utterance
from balr.stores.base import StoredCorpus
from balr.stores.files import FilesStore

Scores = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


def gaussian_scores(seed: int, *, targets: int = 200, nontargets: int = 3_000, decimals: int = 12) -> Scores:
    """Return scores of which no two are equal, unless they are rounded."""
    random = np.random.default_rng(seed)
    scores = np.concatenate([random.normal(2, 1, targets), random.normal(0, 1, nontargets)])
    order = random.permutation(len(scores))
    return np.round(scores, decimals)[order], (np.arange(len(scores)) < targets)[order]


def wespeaker_metrics() -> ModuleType:
    """Import WeSpeaker's metrics, which import a plotting library for a function that is not used here."""
    found = PathFinder.find_spec("wespeaker")
    assert found is not None and found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / "utils" / "score_metrics.py"
    spec = importlib.util.spec_from_file_location("score_metrics", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stubs = {name: ModuleType(name) for name in ("matplotlib", "matplotlib.pyplot")}
    with mock.patch.dict(sys.modules, stubs):
        spec.loader.exec_module(module)
    return module


def speaker_embeddings(
    *, speakers: int = 8, each: int = 6, dim: int = 16, spread: float = 0.6, seed: int = 0
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return ids such as `s3/5` and embeddings `(utterances, dim)` that lie around their speakers' own."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(speakers, dim)) + 0.5
    ids = [f"s{speaker}/{number}" for speaker in range(speakers) for number in range(each)]
    noise = random.normal(size=(speakers * each, dim))
    return ids, (np.repeat(centres, each, axis=0) + spread * noise).astype(np.float32)


def write_store(
    folder: Path,
    ids: list[str],
    matrix: npt.NDArray[np.float32],
    *,
    with_speakers: bool = True,
    extra: Mapping[str, str] = NOTHING,
) -> Path:
    """Write embeddings as a run does."""
    utterances = [
        Utterance(id_, Path(f"/corpus/{id_}.wav"), id_.split("/")[0] if with_speakers else None, extra=extra)
        for id_ in ids
    ]
    folder.mkdir(parents=True)
    store = FilesStore(StoredCorpus(folder, utterances, Path("/corpus"), embedding_dim=matrix.shape[1]), format="npy")
    store.write([Embedded(one, row, 2.0) for one, row in zip(utterances, matrix, strict=True)])
    store.close()
    return folder


def judged(store: Path, **settings: object) -> Judgement:
    """Evaluate a store with few draws."""
    return evaluate(store, EvaluationConfig(**{"bootstrap": 20, **settings}))[0]
