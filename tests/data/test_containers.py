"""Tar shards, parquet files and Kaldi data folders are corpora like any other: same embeddings, resume, failures."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import Command, rows, speechlike, write_wav

from balr import load_embeddings
from balr.data.corpus import Corpus
from balr.errors import InputError

KINDS = [("wav", "WAV"), ("flac", "FLAC"), ("mp3", "MP3"), ("ogg", "OGG")]


def encoded(number: int, kind: str) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, speechlike(1.0 + 0.1 * number, seed=number), 16_000, format=kind)
    return content.getvalue()


AUDIO = [(f"utt{n}", suffix, encoded(n, kind)) for n, (suffix, kind) in enumerate(KINDS * 2)]


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """Return a folder with the audio as files."""
    (tmp_path / "loose").mkdir()
    for name, suffix, content in AUDIO:
        (tmp_path / "loose" / f"{name}.{suffix}").write_bytes(content)
    return tmp_path / "loose"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, audio: list[Any], **columns: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table({"audio": audio, **columns}), path, row_group_size=3)
    return path


def in_tars(folder: Path) -> Path:
    for number in range(2):
        members = {}
        for name, suffix, content in AUDIO[number::2]:
            members[f"{name}.{suffix}"] = content
            fields = {"speaker": f"s{number}", "duration": 1.5, "take": 3, "list": [1]}
            members[f"{name}.json"] = json.dumps(fields).encode()
        write_tar(folder / f"train-{number}.tar", members)
    return folder


def in_parquet(folder: Path) -> Path:
    audio = [{"bytes": content, "path": f"{name}.{suffix}"} for name, suffix, content in AUDIO]
    speakers = [f"s{number % 2}" for number in range(len(AUDIO))]
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", audio, speaker_id=speakers, take=[3] * len(AUDIO))
    return folder


def numbers(folder: Path) -> list[bytes]:
    _, matrix, _ = load_embeddings(folder)
    return sorted(row.tobytes() for row in matrix)


@pytest.mark.parametrize("write", [in_tars, in_parquet])
@pytest.mark.parametrize("loading", ["data=serial", "data=cpu"])
def test_audio_in_containers_gives_the_embeddings_of_the_files(
    balr: Command, loose: Path, tmp_path: Path, write: Callable[[Path], Path], loading: str
) -> None:
    corpus = write(tmp_path / "containers")
    assert balr(f"input={corpus}", "save_dir=out", loading) == 0
    assert balr(f"input={loose}", "save_dir=files", loading) == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "files")
    listed = rows(tmp_path / "out" / "metadata.csv")
    assert {row["speaker"] for row in listed} == {"s0", "s1"} and {row["take"] for row in listed} == {"3"}


def test_a_run_over_a_tar_goes_on_where_it_stopped(balr: Command, tmp_path: Path) -> None:
    corpus = in_tars(tmp_path / "containers")
    assert balr(f"input={corpus}", "save_dir=out") == 0
    before = numbers(tmp_path / "out")
    manifest = tmp_path / "out" / "metadata.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:4]))
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert numbers(tmp_path / "out") == before


def test_members_that_begin_with_a_dot_and_a_slash_are_found_and_hidden_ones_left_out(
    balr: Command, tmp_path: Path
) -> None:
    members = {f"./a/{name}.{suffix}": content for name, suffix, content in AUDIO}
    write_tar(tmp_path / "x.tar", {**members, "./a/._utt0.wav": b"of another system"})
    assert balr("input=x.tar", "save_dir=out") == 0
    assert [row["id"] for row in rows(tmp_path / "out" / "metadata.csv")] == [f"x/a/{name}" for name, *_ in AUDIO]


def test_bad_members_cost_themselves(balr: Command, tmp_path: Path) -> None:
    good = {f"{name}.{suffix}": content for name, suffix, content in AUDIO}
    write_tar(tmp_path / "x.tar", {**good, "bad.wav": b"no audio", "empty.flac": b""})
    assert balr("input=x.tar", "save_dir=tar") == 1
    assert [row["id"] for row in rows(tmp_path / "tar" / "failures.csv")] == ["x/bad", "x/empty"]
    assert len(rows(tmp_path / "tar" / "metadata.csv")) == len(AUDIO)
    write_parquet(tmp_path / "x.parquet", [*(content for *_, content in AUDIO), b"no audio", None])
    assert balr("input=x.parquet", "save_dir=parquet") == 1
    assert [row["id"] for row in rows(tmp_path / "parquet" / "failures.csv")] == ["x/8", "x/9"]


def test_a_parquet_of_paths_reads_the_files_beside_it(balr: Command, loose: Path, tmp_path: Path) -> None:
    write_parquet(
        loose / "list.parquet", [f"{name}.{suffix}" for name, suffix, _ in AUDIO], id=[one[0] for one in AUDIO]
    )
    assert balr(f"input={loose / 'list.parquet'}", "save_dir=out") == 0
    assert [row["id"] for row in rows(tmp_path / "out" / "metadata.csv")] == [one[0] for one in AUDIO]


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda at: write_tar(at / "x.tar", {"../../evil.wav": b"x"}), "leads out of the tar"),
        (lambda at: write_tar(at / "x.tar", {"/etc/evil.wav": b"x"}), "leads out of the tar"),
        (lambda at: write_tar(at / "x.tar", {"notes.txt": b"x"}), "no audio members"),
        (lambda at: write_tar(at / "x.tar", {"a.wav": b"x", "a.json": b"[1"}), r"'a.json' is no JSON"),
        (lambda at: (at / "x.tar").write_bytes(b"no tar" * 200) and at / "x.tar", "not a whole tar"),
        (lambda at: (at / "x.parquet").write_bytes(b"PAR1 no") and at / "x.parquet", "not a parquet file"),
        (
            lambda at: pq.write_table(pa.table({"text": ["a"]}), at / "x.parquet") or at / "x.parquet",
            "no column 'audio'",
        ),
        (lambda at: write_parquet(at / "x.parquet", [b"a", b"b"], id=["1", "1"]), "its id '1' is that of"),
    ],
)
def test_a_container_that_is_none_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], Path], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        Corpus.from_path(write(tmp_path))


def test_a_tar_that_is_cut_is_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.wav": bytes(5_000), "b.wav": bytes(50_000)})
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(InputError, match="not a whole tar"):
        Corpus.from_path(path)


@pytest.fixture
def kaldi_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "kaldi"
    for number in range(2):
        write_wav(folder / f"{number}.wav", speechlike(3.0, seed=number))
    (folder / "wav.scp").write_text("r0 0.wav\nr1 1.wav\n")
    (folder / "segments").write_text("u0 r0 0.5 1.5\nu1 r1 1.0 2.5\nu2 r1 0 -1\n")
    (folder / "utt2spk").write_text("u0 alice\nu1 bob\nu2 bob\n")
    (folder / "utt2dur").write_text("u0 1.0\nu2 3.0\n")
    return folder


def test_a_kaldi_data_folder_is_a_corpus_with_segments_speakers_and_durations(
    balr: Command, kaldi_folder: Path, tmp_path: Path
) -> None:
    utterances = Corpus.from_path(kaldi_folder).utterances
    assert [(u.id, u.speaker, u.duration_seconds) for u in utterances] == [
        ("u0", "alice", 1.0),
        ("u1", "bob", None),
        ("u2", "bob", 3.0),
    ]
    assert balr(f"input={kaldi_folder}", "save_dir=out", "store=kaldi") == 0
    assert (tmp_path / "out" / "utt2spk").read_text() == (kaldi_folder / "utt2spk").read_text()


def test_what_is_wrong_in_a_kaldi_data_folder_is_named_by_its_line(kaldi_folder: Path) -> None:
    for name, text, reason in (
        ("segments", "u0 r9 0 1\n", r"segments:1: recording 'r9' is not in wav.scp"),
        ("utt2spk", "u0 alice\nu1\n", r"utt2spk:2: expected 'id value'"),
        ("utt2dur", "u0 long\n", r"utt2dur:1: duration 'long' is not a number of seconds"),
    ):
        kept = (kaldi_folder / name).read_text()
        (kaldi_folder / name).write_text(text)
        with pytest.raises(InputError, match=reason):
            Corpus.from_path(kaldi_folder)
        (kaldi_folder / name).write_text(kept)


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


@pytest.mark.parametrize("duration", ["-1", "0", "abc", "nan", "1:30"])
def test_a_duration_that_is_no_number_of_seconds_is_refused(corpus: Path, duration: str) -> None:
    (corpus / "list.csv").write_text(f"audio,duration\nspk0/utt0.wav,{duration}\n")
    with pytest.raises(InputError, match=r"list.csv:2: duration .* is not a"):
        Corpus.from_path(corpus / "list.csv")
