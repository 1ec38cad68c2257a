"""Take over embeddings that lie beside the audio, as earlier BA-LR toolkits leave them: `<stem>_emb.txt|pkl|npy`."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from balr.errors import BalrError, InputError, one_line
from balr.records import WHOLE, Embedded, Utterance
from balr.stores.base import Store
from balr.stores.embedding_files import SUFFIXES, read_embedding

log = logging.getLogger(__name__)

_AT_A_TIME = 1_024


def reuse_beside(utterances: Sequence[Utterance], store: Store, *, embedding_dim: int | None) -> int:
    """Store the embeddings of whole files that lie beside them, and return how many.

    Nobody can tell which model made them. Those that cannot be read, have NaN or another size than `embedding_dim` are
    left to be embedded.
    """
    reused, refused = 0, []
    for start in range(0, len(utterances), _AT_A_TIME):
        batch = []
        for utterance in utterances[start : start + _AT_A_TIME]:
            path = _beside(utterance)
            if path is None:
                continue
            try:
                batch.append(_read(utterance, path, embedding_dim))
            except BalrError as error:
                refused.append(one_line(error))
        reused += len(batch) - len(store.write(batch)) if batch else 0
    if refused:
        log.warning("%d embeddings beside the audio are not reused, first: %s", len(refused), refused[0])
    if reused:
        log.warning("%d embeddings beside the audio are reused; which model made them is for you to know", reused)
    return reused


def _beside(utterance: Utterance) -> Path | None:
    audio = utterance.audio
    if audio is None or utterance.part != WHOLE:
        return None
    places = (audio.with_name(f"{audio.stem}_emb{suffix}") for suffix in SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def _read(utterance: Utterance, path: Path, embedding_dim: int | None) -> Embedded:
    embedding = read_embedding(path).astype(np.float32)
    if embedding_dim not in (None, embedding.size):
        raise InputError(f"{path}: {embedding.size} numbers, and this model gives {embedding_dim}.")
    if not np.isfinite(embedding).all() or not embedding.any():
        raise InputError(f"{path}: numbers that are not finite, or all zeros.")
    return Embedded(utterance, embedding, utterance.duration_seconds or 0.0)
