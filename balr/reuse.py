"""Take over embeddings that lie beside the audio, as earlier BA-LR toolkits leave them: `<stem>_emb.txt|pkl|npy`."""

import logging
import os
from collections.abc import Sequence, Set
from pathlib import Path

from balr.errors import BalrError, InputError, one_line
from balr.records import WHOLE, Embedded, Utterance
from balr.shutdown import Stop
from balr.stores.base import Store
from balr.stores.embedding_files import SUFFIXES, read_usable
from balr.stores.places import embedding_file

log = logging.getLogger(__name__)

_AT_A_TIME = 1_024


def reuse_beside(utterances: Sequence[Utterance], store: Store, *, embedding_dim: int | None, stop: Stop) -> Set[str]:
    """Store the embeddings of whole files that lie beside them, unless it has them, and return the ids of all of these.

    No record says which model made them. Files that cannot be read, have NaN or another size than `embedding_dim` are
    left to be embedded. When `stop` is set, the others are left, too.
    """
    before = frozenset(store.completed())
    beside: set[str] = set()
    refused = []
    for start in range(0, len(utterances), _AT_A_TIME):
        batch = []
        for utterance in () if stop.is_set() else utterances[start : start + _AT_A_TIME]:
            path = _beside(utterance)
            if path is None:
                continue
            try:
                embedded = _read(utterance, path, embedding_dim)
            except BalrError as error:
                refused += [] if utterance.id in before else [one_line(error)]
                continue
            beside.add(utterance.id)
            batch += [] if utterance.id in before else [embedded]
        beside -= {failure.id for failure in store.write(batch)} if batch else set()
    if refused:
        log.warning("%d embeddings beside the audio are not reused, first: %s", len(refused), refused[0])
    if reused := len(beside - before):
        log.warning("%d embeddings beside the audio are reused; which model made them is for you to know", reused)
    return beside


def _beside(utterance: Utterance) -> Path | None:
    if utterance.audio is None or utterance.part != WHOLE:
        return None
    places = (embedding_file(utterance, suffix, root="", output_dir=None) for suffix in SUFFIXES)
    return next((Path(place) for place in places if os.path.isfile(place)), None)


def _read(utterance: Utterance, path: Path, embedding_dim: int | None) -> Embedded:
    embedding = read_usable(path)
    if embedding_dim not in (None, embedding.size):
        raise InputError(f"{path}: {embedding.size} numbers, and this model gives {embedding_dim}.")
    return Embedded(utterance, embedding, utterance.duration_seconds or 0.0)
