"""Tar shards and parquet files are corpora like any other: same embeddings, resume, failures."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import Command, rows, speechlike

from balr import load_embeddings
from balr.data.audio import load_waveform
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
    assert names(manifest) == names(corpus), "the manifest is a list, too"


def test_a_field_that_no_list_can_hold_is_left_out_and_the_run_goes_on_later(balr: Command, tmp_path: Path) -> None:
    fields = dict.fromkeys(("id", "speaker", "note"), "x" * 200_000) | {"take": 3}
    write_tar(tmp_path / "x.tar", {"a.wav": encoded(0, "WAV"), "a.json": json.dumps(fields).encode()})
    for _ in range(2):
        assert balr("input=x.tar", "save_dir=out") == 0
    (listed,) = rows(tmp_path / "out" / "metadata.csv")
    assert (listed["id"], listed["speaker"], listed["take"]) == ("x/a", "", "3") and "note" not in listed


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
        (lambda at: write_parquet(at / "x.parquet", [[0.1], [0.2]]), r"column 'audio' holds list"),
        (lambda at: write_parquet(at / "x.parquet", pa.array([], pa.binary())), "no utterances"),
        (lambda at: write_parquet(at / "x.parquet", [b"a", b"b"], id=["1", "1"]), "its id '1' is that of"),
    ],
)
def test_a_container_that_is_none_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], Path], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        Corpus.from_path(write(tmp_path))


def test_a_dataset_that_was_saved_to_disk_is_told_how_to_become_an_input(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").touch()
    with pytest.raises(InputError, match="to_parquet"):
        Corpus.from_path(tmp_path / "saved")


def test_a_tar_that_is_cut_is_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.wav": bytes(5_000), "b.wav": bytes(50_000)})
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(InputError, match="not a whole tar"):
        Corpus.from_path(path)


def names(path: Path) -> list[str]:
    return [utterance.id for utterance in Corpus.from_path(path).utterances]


def test_a_tar_with_a_damaged_header_is_refused_as_members_behind_it_could_be_lost(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{n}.wav": bytes(3_000) for n in range(3)})
    content = bytearray(path.read_bytes())
    content[3_584:3_684] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged at byte 3,584"):
        Corpus.from_path(path)


def test_tars_that_were_joined_are_refused_as_only_the_first_would_be_read(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{n}.tar", {f"{n}.wav": b"x"}) for n in range(2))
    (tmp_path / "x.tar").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(InputError, match="or several tars joined there"):
        Corpus.from_path(tmp_path / "x.tar")


def test_a_size_below_zero_does_not_lead_back_for_ever(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.wav": b"x", "b.wav": b"x"})
    content = bytearray(path.read_bytes())
    header = content[1_024:1_536]
    header[124:136] = b"\xff" * 10 + (-1_024).to_bytes(2, signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1_024:1_536] = header
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a whole tar"):
        Corpus.from_path(path)


def test_a_link_in_a_tar_is_a_failure_and_not_lost(balr: Command, loose: Path, tmp_path: Path) -> None:
    (loose / "hard.wav").hardlink_to(loose / "utt0.wav")
    (loose / "soft.wav").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(loose, arcname=".")  # as `tar -cf x.tar .` does
    assert balr("input=x.tar", "save_dir=out") == 1
    failed = {row["id"]: row["reason"] for row in rows(tmp_path / "out" / "failures.csv")}
    assert len(failed) == 2 and "x/soft" in failed and all("--dereference" in reason for reason in failed.values())
    assert len(rows(tmp_path / "out" / "metadata.csv")) == len(AUDIO)


def test_a_tar_is_searched_for_the_formats_that_are_asked_for(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.wav": b"x", "b.FLAC": b"x", "._a.wav": b"x"})
    assert names(path) == ["x/a", "x/b"]
    assert [one.id for one in Corpus.from_path(path, audio_formats=["flac"]).utterances] == ["x/b"]


def test_a_name_with_dots_shares_the_json_of_its_first_part(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"s/u1.left.wav": b"x", "s/u1.json": b'{"speaker": "ann"}'})
    assert [(one.id, one.speaker) for one in Corpus.from_path(path).utterances] == [("x/s/u1.left", "ann")]


@pytest.mark.parametrize("member", ["x.tar/b.wav", "x.parquet/2", "x.parquet/-1", "x.parquet/a", "y.tar/a.wav"])
def test_a_list_may_name_members_and_those_that_are_not_there_are_refused(tmp_path: Path, member: str) -> None:
    write_tar(tmp_path / "x.tar", {"a.wav": b"x"})
    write_parquet(tmp_path / "x.parquet", [b"x", b"x"])
    (tmp_path / "y.tar").write_text("no tar")
    (tmp_path / "list.csv").write_text("id,audio\na,x.tar/a.wav\nb,x.parquet/1\n")
    assert names(tmp_path / "list.csv") == ["a", "b"]
    with (tmp_path / "list.csv").open("a") as file:
        file.write(f"c,{member}\n")
    with pytest.raises(InputError, match=r"list.csv:4: 1 utterances whose file does not exist"):
        Corpus.from_path(tmp_path / "list.csv")


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_container_that_is_written_anew_is_read_anew(tmp_path: Path, suffix: str) -> None:
    contents = [encoded(number, "WAV") for number in range(3)]
    for order in ((0, 1, 2), (2, 0, 1)):
        if suffix == "tar":
            write_tar(tmp_path / "x.tar", {f"{number}.wav": contents[number] for number in order})
        else:
            write_parquet(tmp_path / "x.parquet", [contents[number] for number in order])
        os.utime(tmp_path / f"x.{suffix}", (0, order[0]))
        lengths = [
            load_waveform(one.audio or tmp_path, 16_000).numel() for one in Corpus.from_path(tmp_path).utterances
        ]
        assert lengths == [round(16_000 * (1.0 + 0.1 * number)) for number in order]


def test_members_are_read_where_memory_has_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = write_tar(tmp_path / "x.tar", {"a.wav": encoded(0, "WAV")})
    for _ in range(2):
        assert load_waveform(path / "a.wav", 16_000).numel() == 16_000
    assert not list((tmp_path / "temporary").iterdir())


def test_embeddings_cannot_go_beside_audio_in_a_container(
    balr: Command, tmp_path: Path, one_error_line: Callable[[], str]
) -> None:
    in_tars(tmp_path / "containers")
    assert balr(f"input={tmp_path / 'containers'}", "save_dir=null") == 2
    assert "none can go beside audio that is in a tar" in one_error_line()
