"""What `balr verify --forget` takes off a store is gone from all of its lists and parts, and nothing else is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from example_embeddings import DIM, UTTERANCES, embedded

from balr.data.corpus import Corpus
from balr.records import Utterance
from balr.runs.verify import forget, verify
from balr.stores.base import StoredCorpus
from balr.stores.kaldi import KaldiStore
from balr.stores.parquet import ParquetStore
from balr.stores.reading import load_embeddings

ROOT = Path("/corpus")
RECORD = '{"model": {}, "forcing": false, "embedding_dim": 5, "runs": [{"counts": {"total": 3}}]}'


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(RECORD)
    return tmp_path / "out"


def test_the_lists_of_kaldi_are_those_of_what_is_left(out: Path) -> None:
    def opened(*utterances: Utterance) -> KaldiStore:
        return KaldiStore(StoredCorpus(out, utterances, ROOT, embedding_dim=DIM))

    store = opened(*UTTERANCES)
    store.write(embedded(0, 1, 2))
    store.close()
    first, _, last, *_ = UTTERANCES
    assert forget(out, verify(out, Corpus([first, last], ROOT))) == 1
    opened(first, last).close()
    for name in ("xvector.scp", "utt2spk"):
        assert [line.split()[0] for line in (out / name).read_text().splitlines()] == ["u0", "u2"]
    assert (out / "spk2utt").read_text() == "s0 u0 u2\n"
    opened(first, replace(last, speaker="s9")).close()
    assert (out / "spk2utt").read_text() == "s0 u0\ns9 u2\n"


def spoil_all(part: Path) -> None:
    part.write_bytes(b"no part")


def spoil_the_speakers(part: Path) -> None:
    columns = [pq.read_metadata(part).row_group(0).column(number) for number in range(8)]
    (speakers,) = (column for column in columns if column.path_in_schema == "speaker")
    content = bytearray(part.read_bytes())
    content[speakers.dictionary_page_offset + speakers.total_compressed_size - 3] ^= 0xFF
    part.write_bytes(content)


@pytest.mark.parametrize("spoil", [spoil_all, spoil_the_speakers])
def test_a_part_that_cannot_be_read_is_forgotten_whole(out: Path, spoil: Callable[[Path], None]) -> None:
    corpus = StoredCorpus(out, UTTERANCES, ROOT)
    store = ParquetStore(corpus, rows_per_part=1)
    for number in range(3):
        store.write(embedded(number))
    store.close()
    spoil(out / "part-00001.parquet")
    assert forget(out, verify(out)) == 1
    assert ParquetStore(corpus, rows_per_part=1).completed() == {"u0", "u2"}


def test_rows_of_a_run_that_was_killed_stay_forgotten(out: Path) -> None:
    ParquetStore(StoredCorpus(out, UTTERANCES, ROOT), rows_per_part=10).write(embedded(0, 1, 2))
    first, second, *_ = UTTERANCES
    for left in ([first, second], [first]):
        assert forget(out, verify(out, Corpus(left, ROOT))) == 1
        assert load_embeddings(out)[0] == [one.id for one in left]
    assert [part.name for part in out.glob("part-*")] == ["part-00000.parquet"]
