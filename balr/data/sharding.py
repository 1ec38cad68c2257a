"""Cut a corpus into shards: disjoint, together the whole, and the same on every host."""

import heapq
import os
import zlib
from collections.abc import Sequence

from balr.data.corpus import Corpus
from balr.records import WHOLE, Shard, Utterance


def shard_of(corpus: Corpus, shard: Shard) -> Corpus:
    """Return the utterances of a shard, in the order of the corpus.

    An utterance's shard does not depend on the order of the list. The longest go first, each to the shard with the
    least audio so far, by duration where each utterance has one, else by the size of its file; where neither is known,
    a hash of the id decides.
    """
    if shard.count == 1:
        return corpus
    loads = _durations(corpus.utterances) or _sizes(corpus.utterances)
    if loads is None:
        return corpus.filter(lambda utterance: _hash(utterance.id) % shard.count == shard.index)
    ids = (utterance.id for utterance in corpus.utterances)
    longest_first = sorted(zip((-load for load in loads), ids, strict=True))
    shards = [(0.0, 0, index) for index in range(shard.count)]  # audio, utterances, index
    chosen = set()
    for negative, id_ in longest_first:
        audio, count, index = shards[0]
        heapq.heapreplace(shards, (audio - negative, count + 1, index))
        if index == shard.index:
            chosen.add(id_)
    return corpus.filter(lambda utterance: utterance.id in chosen)


def _durations(utterances: Sequence[Utterance]) -> list[float] | None:
    found = [utterance.duration_seconds for utterance in utterances if utterance.duration_seconds is not None]
    return found if len(found) == len(utterances) else None


def _sizes(utterances: Sequence[Utterance]) -> list[int] | None:
    """Return the sizes of the files in bytes, without opening one; None where an utterance is a part of a file."""
    if any(utterance.audio is None or utterance.part != WHOLE for utterance in utterances):
        return None
    try:
        return [os.path.getsize(str(utterance.audio)) for utterance in utterances]
    except OSError:  # such as members of a tar
        return None


def _hash(id_: str) -> int:
    return zlib.crc32(id_.encode(errors="surrogateescape"))
