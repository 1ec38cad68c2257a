"""Shards are disjoint, complete, the same in whatever order a corpus is listed, and balanced by known durations."""

import random
from pathlib import Path

import pytest

from balr.data.corpus import Corpus
from balr.data.sharding import shard_of
from balr.errors import ConfigError
from balr.records import Shard, Utterance


def corpus(count: int, *, with_durations: bool, seed: int = 0) -> Corpus:
    lengths = random.Random(seed)
    seconds = [lengths.lognormvariate(2, 0.6) if with_durations else None for _ in range(count)]
    utterances = [Utterance(f"u{n}", Path(f"/c/{n}.wav"), duration_seconds=seconds[n]) for n in range(count)]
    random.Random(seed).shuffle(utterances)
    return Corpus(utterances, Path("/c"))


@pytest.mark.parametrize("with_durations", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 18, 64])
def test_shards_are_disjoint_complete_and_independent_of_the_order(count: int, with_durations: bool) -> None:
    whole = corpus(300, with_durations=with_durations)
    reversed_corpus = Corpus(whole.utterances[::-1], whole.root_dir)
    shards = [shard_of(whole, Shard(index, count)) for index in range(count)]
    ids = [utterance.id for shard in shards for utterance in shard.utterances]
    assert len(ids) == len(set(ids)) == 300
    for index, shard in enumerate(shards):
        again = shard_of(reversed_corpus, Shard(index, count))
        assert {u.id for u in again.utterances} == {u.id for u in shard.utterances}
        order = {u.id: n for n, u in enumerate(whole.utterances)}
        assert [order[u.id] for u in shard.utterances] == sorted(order[u.id] for u in shard.utterances)


@pytest.mark.parametrize("seed", range(5))
def test_known_durations_balance_shards_within_2_percent(seed: int) -> None:
    whole = corpus(1_000, with_durations=True, seed=seed)
    loads = [sum(u.duration_seconds or 0 for u in shard_of(whole, Shard(index, 16)).utterances) for index in range(16)]
    assert max(loads) < 1.02 * min(loads)


def test_sizes_of_files_balance_shards_where_no_list_has_durations(tmp_path: Path) -> None:
    lengths = random.Random(0)
    seconds = {f"u{n}": lengths.lognormvariate(2, 0.6) for n in range(1_000)}
    for name, duration in seconds.items():  # bytes a second vary from file to file, as those of flac do
        with (tmp_path / name).open("wb") as file:
            file.truncate(int(duration * 16_000 * lengths.uniform(0.9, 1.1)))
    whole = Corpus([Utterance(name, tmp_path / name) for name in seconds], tmp_path)
    shards = [shard_of(whole, Shard(index, 8)) for index in range(8)]
    loads = [sum(seconds[utterance.id] for utterance in shard.utterances) for shard in shards]
    assert max(loads) < 1.02 * min(loads)
    assert sorted(u.id for shard in shards for u in shard.utterances) == sorted(seconds)


def test_durations_of_zero_do_not_put_all_utterances_into_one_shard() -> None:
    whole = Corpus([Utterance(f"u{n}", Path(f"/c/{n}.wav"), duration_seconds=0.0) for n in range(8)], Path("/c"))
    assert [len(shard_of(whole, Shard(index, 4))) for index in range(4)] == [2, 2, 2, 2]


@pytest.mark.parametrize(("index", "count"), [(64, 64), (-1, 2), (0, 0), (1, 1)])
def test_an_index_outside_of_its_count_is_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigError, match=r"shard.index=.* of shard.count="):
        Shard(index, count)


def test_names_carry_the_index_at_the_width_of_the_count() -> None:
    tags = [shard.tag for shard in (Shard(3, 64), Shard(0, 2), Shard(7, 100), Shard())]
    assert tags == [".03-of-64", ".0-of-2", ".007-of-100", ""]
