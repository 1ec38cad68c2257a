"""Lengths from headers: for planning, remembered from one run to the next, never trusted with more than that."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Command, rows, speechlike, write_wav

from balr import load_embeddings
from balr.config import DataConfig
from balr.data import headers as module
from balr.data import planning
from balr.data.corpus import Corpus
from balr.data.headers import Header, HeaderCache, headers, read_header
from balr.shutdown import Stop


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_header_tells_the_length(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, speechlike(2.5), 16_000)
    assert read_header(path).seconds == pytest.approx(2.5, abs=0.1)


def seconds(files: Sequence[Path], *, cache: Path | None = None) -> list[float | None]:
    return [header.seconds for header in headers(files, cache=HeaderCache(cache))]


def test_a_file_that_only_ffmpeg_reads_tells_its_length_too(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        samples = speechlike(3.0).reshape(1, -1)
        for start in range(0, samples.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert read_header(tmp_path / "a.m4a").seconds == pytest.approx(3.0, abs=0.2)


def test_what_is_no_audio_has_no_length(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.wav").write_bytes(b"")
    files = [tmp_path / "text.wav", tmp_path / "empty.wav", tmp_path / "absent.wav", tmp_path]
    assert seconds(files) == [None] * 4


def test_a_file_is_opened_once_for_all_runs_unless_its_header_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_wav(tmp_path / f"{n}.wav", speechlike(1.0 + n)) for n in range(3)]
    opened = []
    monkeypatch.setattr(module, "read_header", lambda path: opened.append(path) or read_header(path))
    cache = tmp_path / "durations.csv"
    assert seconds(files, cache=cache) == seconds(files, cache=cache) == [1.0, 2.0, 3.0]
    assert opened == files
    (tmp_path / "late.wav").write_bytes(b"")
    for length in (None, 5.0):
        assert seconds([*files, tmp_path / "late.wav"], cache=cache) == [1.0, 2.0, 3.0, length]
        write_wav(tmp_path / "late.wav", speechlike(5.0))
    assert opened == [*files, tmp_path / "late.wav", tmp_path / "late.wav"]


def test_durations_of_earlier_versions_are_taken_and_a_row_that_a_kill_cut_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_header", lambda _: Header(9.0, 16_000, 1, True))
    cache = tmp_path / "durations.csv"
    cache.write_text(
        "audio,bytes,changed_ns,seconds,sample_rate_hz,channels,seeks\n"
        '/a.wav,1,2,1.5,8000,1,True\n"/b,c.ogg",1,2,2.5,8000,2,False\n/d.wav,1,2,2.5,8000,1,Tr'
    )
    files = [Path("/a.wav"), Path("/b,c.ogg"), Path("/d.wav")]
    for _ in range(2):
        found = headers(files, cache=HeaderCache(cache))
        assert found == [Header(1.5, 8_000, 1, True), Header(2.5, 8_000, 2), Header(9.0, 16_000, 1, True)]
    assert len(rows(cache)) == 3


def test_durations_are_read_once_and_never_written_anew_for_each_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        write_wav(tmp_path / f"{number}.wav", speechlike(0.5))
    cache = tmp_path / "durations.csv"
    assert seconds([tmp_path / "0.wav"], cache=cache) == [0.5]
    reads, writes, read, replace = [], [], csv.DictReader, os.replace
    monkeypatch.setattr(csv, "DictReader", lambda file: reads.append(file) or read(file))
    monkeypatch.setattr(os, "replace", lambda old, new: writes.append(new) or replace(old, new))
    monkeypatch.setattr(planning, "_UTTERANCES_PER_WINDOW", 2)
    settings: dict[str, Any] = {"sample_rate_hz": 16_000, "batch_size": 4, "max_batch_seconds": 60.0, "isolated": False}
    plans = planning.plan_in_windows(
        Corpus.from_dir(tmp_path), DataConfig(), (), durations_file=cache, stop=Stop(), **settings
    )
    assert [plan.seconds for _, plan in plans] == [(0.5, 0.5)] * 5
    assert len(reads) == len(writes) == 1
    monkeypatch.undo()
    assert [row["seconds"] for row in rows(cache)] == ["0.5"] * 10


HEADER = "audio,bytes,changed_ns,seconds,sample_rate_hz\n"
BROKEN = (
    "",
    "not a csv of ours\n1\n",
    "\0",
    *(f"{HEADER}a,1,2,{cells}\n" for cells in ("long,8000", "nan,", "inf,", "-1,", "1.0,slow")),
)


@pytest.mark.parametrize("text", BROKEN)
def test_a_cache_that_cannot_be_read_is_made_anew(tmp_path: Path, text: str) -> None:
    file = write_wav(tmp_path / "a.wav", speechlike(1.0))
    cache = tmp_path / "durations.csv"
    cache.write_text(text)
    assert seconds([file], cache=cache) == [1.0]
    assert str(file) in cache.read_text()


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes only there")
def test_names_that_are_not_utf_8_are_remembered_too(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "a.wav", speechlike(1.0)).rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    for _ in range(2):
        assert seconds([file], cache=tmp_path / "durations.csv") == [1.0]


def test_a_column_of_durations_spares_the_headers(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"spk{n % 2}/utt{n}.wav,{1 + 0.2 * n:g}" for n in range(6)]
    (corpus / "list.csv").write_text("audio,duration\n" + "\n".join(lines) + "\n")
    assert balr(f"input={corpus / 'list.csv'}", "save_dir=out") == 0
    assert not (tmp_path / "out" / "durations.csv").exists()
    assert [row["duration"] for row in rows(tmp_path / "out" / "metadata.csv")] == [
        line.split(",")[1] for line in lines
    ]
    assert balr(f"input={corpus}", "save_dir=plain") == 0
    assert np.array_equal(
        load_embeddings(tmp_path / "out")[1], load_embeddings(tmp_path / "plain")[1][[0, 3, 1, 4, 2, 5]]
    )
