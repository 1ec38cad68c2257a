"""Cut a corpus into shards: disjoint, together the whole, and the same on every host."""

import hashlib
import heapq

from balr.data.corpus import Corpus
from balr.records import Shard


def shard_of(corpus: Corpus, shard: Shard) -> Corpus:
    """Return the utterances of a shard, in the order of the corpus.

    An utterance's shard depends on ids and durations alone, not on the order of the list. Where each has a duration,
    the longest go first, each to the shard with the least audio so far; else a hash of the id decides.
    """
    if shard.count == 1:
        return corpus
    if any(utterance.duration_seconds is None for utterance in corpus.utterances):
        return corpus.filter(lambda utterance: _hash(utterance.id) % shard.count == shard.index)
    longest_first = sorted((-(utterance.duration_seconds or 0.0), utterance.id) for utterance in corpus.utterances)
    loads = [(0.0, 0, index) for index in range(shard.count)]  # seconds of audio, utterances, index
    chosen = set()
    for negative_seconds, id_ in longest_first:
        seconds, count, index = loads[0]
        heapq.heapreplace(loads, (seconds - negative_seconds, count + 1, index))
        if index == shard.index:
            chosen.add(id_)
    return corpus.filter(lambda utterance: utterance.id in chosen)


def _hash(id_: str) -> int:
    digest = hashlib.blake2b(id_.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
