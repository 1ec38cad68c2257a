"""`balr verify` finds what is missing, extra, broken or swapped, and lets the next run embed it again."""

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Command, break_off_after, embeddings, interrupt_at, rows, run_command, speechlike, write_wav

from balr import cli
from balr.stores.embedding_files import checksum, encode, read_embedding


def verify(*arguments: object) -> tuple[int, str]:
    written = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(written), redirect_stderr(written):
        patch.setattr(sys, "argv", ["balr", "verify", *map(str, arguments)])
        return cli.run_command(), written.getvalue()


def write(path: Path, embedding: npt.NDArray[np.float32]) -> None:
    path.write_bytes(encode(embedding, path.suffix))


@pytest.fixture
def out(balr: Command, corpus: Path, tmp_path: Path) -> Path:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    return tmp_path / "out"


def test_a_finished_folder_is_as_it_should_be(out: Path, corpus: Path) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for arguments in ((out,), (out, corpus), (out, corpus, "--forget")):
        code, told = verify(*arguments)
        assert code == 0 and "all is as it should be" in told
        assert re.search(r"32 numbers, norm [\d.]+ to [\d.]+", told)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_damage_is_found_repaired_and_made_again(balr: Command, out: Path, corpus: Path) -> None:
    before = embeddings(out)
    paths = sorted(out.rglob("*_emb.npy"))
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:140])
    write(paths[2], np.full(32, np.nan, np.float32))
    write(paths[3], np.zeros(32, np.float32))
    write(paths[4], read_embedding(paths[4])[:16].copy())
    code, told = verify(out, corpus)
    assert code == 1 and "1 missing, 4 broken" in told
    assert "utt0_emb.npy: missing" in told and told.count("its CRC-32 is") == 4
    assert verify(out, corpus, "--forget")[1].splitlines()[-1].startswith("5 taken off the list")
    assert len(rows(out / "metadata.csv")) == 1
    assert verify(out)[0] == 1, "the record knows of more"
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert embeddings(out) == before
    assert verify(out, corpus)[0] == 0


def swap_cells(out: Path, *, columns: slice = slice(3, 4)) -> None:
    lines = [line.split(",") for line in (out / "metadata.csv").read_text().splitlines()]
    lines[1][columns], lines[2][columns] = lines[2][columns], lines[1][columns]
    (out / "metadata.csv").write_text("".join(f"{','.join(line)}\n" for line in lines))


def swap_cells_and_checksums(out: Path) -> None:
    swap_cells(out, columns=slice(3, 5))


def swap_files(out: Path) -> None:
    first, second = sorted(out.rglob("*_emb.npy"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def flip_a_bit(out: Path) -> None:
    path = min(out.rglob("*_emb.npy"))
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [swap_cells, swap_cells_and_checksums, swap_files, flip_a_bit])
def test_what_only_a_checksum_or_a_place_shows_is_found_and_embedded_again(
    balr: Command, out: Path, corpus: Path, damage: Callable[[Path], None]
) -> None:
    before = embeddings(out)
    damage(out)
    wrong = 1 if damage is flip_a_bit else 2
    code, told = verify(out, corpus, "--forget")
    assert code == 1 and f"{wrong} taken off the list" in told
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert embeddings(out) == before and verify(out, corpus)[0] == 0


def test_what_is_not_listed_and_what_is_not_in_the_corpus_is_extra(out: Path, corpus: Path) -> None:
    write(out / "stray_emb.npy", np.ones(32, np.float32))
    (corpus / "spk0" / "utt0.wav").unlink()
    write_wav(corpus / "new.wav", speechlike(1.0))
    code, told = verify(out, corpus)
    assert code == 1 and "2 extra, 1 missing" in told
    assert "stray_emb.npy: not in metadata.csv" in told
    assert "spk0/utt0.wav: not in the corpus" in told and "new.wav: in the corpus, but neither" in told
    assert verify(out, corpus, "--forget")[0] == 1
    assert (out / "stray_emb.npy").exists(), "whole, so it may be somebody's"


def test_the_corpus_is_read_as_the_run_read_it(balr: Command, corpus: Path, tmp_path: Path) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "channel=0", "audio_formats=[wav]") == 0
    (corpus / "spk0" / "utt0.flac").write_bytes(b"not taken")
    code, told = verify("out", corpus, "--forget")
    assert code == 0 and "all is as it should be" in told and "0 taken off the list" in told
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6


@pytest.mark.parametrize("store", ["files", "parquet", "kaldi"])
def test_an_utterance_that_was_skipped_is_not_missed(balr: Command, corpus: Path, tmp_path: Path, store: str) -> None:
    write(tmp_path / "earlier_emb.npy", np.ones(32, np.float32))
    lines = "id,audio,embedding\na,corpus/spk0/utt0.wav,\nb,,earlier_emb.npy\n"
    (tmp_path / "list.csv").write_text(lines)
    assert balr("input=list.csv", "save_dir=out", f"store={store}") == 0
    for arguments in (("out",), ("out", "list.csv")):
        code, told = verify(*arguments)
        assert code == 0, told
        assert re.search(r"in metadata.csv +1\n +whole +1\n", told)


def test_failures_are_accounted_for(balr: Command, corpus: Path, tmp_path: Path) -> None:
    (corpus / "text.wav").write_text("no audio")
    assert balr(f"input={corpus}", "save_dir=out") == 1
    code, told = verify(tmp_path / "out", corpus)
    assert code == 0 and re.search(r"in failures.csv +1", told) and re.search(r"in the corpus +7", told)


def test_contradictions_among_the_lists_are_told(out: Path, corpus: Path) -> None:
    (out / "failures.csv").write_text("id,audio,stage,reason\nspk0/utt0.wav,x,decode,bad\n")
    code, told = verify(out, corpus)
    assert code == 1 and "in metadata.csv and in failures.csv" in told


def test_lines_lost_from_a_list_are_missed(out: Path) -> None:
    lines = (out / "metadata.csv").read_text().splitlines()
    (out / "metadata.csv").write_text("\n".join(lines[:-2]) + "\n")
    code, told = verify(out)
    assert code == 1 and "2 utterances of the last run are neither listed nor failed" in told
    assert told.count("not in metadata.csv") == 2


@pytest.mark.parametrize(("change", "told"), [("gone", "no record"), ("text", "not balr")])
def test_a_record_that_cannot_vouch_for_the_embeddings_is_told(out: Path, change: str, told: str) -> None:
    (out / "run.json").unlink()
    if change != "gone":
        (out / "run.json").write_text("text")
    code, output = verify(out)
    assert code == 1 and told in output


def test_another_s_audio_under_an_id_is_told(out: Path, corpus: Path, tmp_path: Path) -> None:
    corpus.rename(tmp_path / "elsewhere")
    code, told = verify(out, tmp_path / "elsewhere")
    assert code == 1 and "6 contradiction" in told


@pytest.mark.parametrize("arguments", [("nowhere",), (".",), ("out", "nowhere.csv")])
def test_what_cannot_be_verified_is_one_line_and_exit_code_2(out: Path, arguments: tuple[str, ...]) -> None:
    code, told = verify(*arguments)
    assert code == 2 and told.splitlines()[-1].startswith("ERROR ")


def test_a_run_that_did_not_reach_all_is_not_complete(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert balr(f"input={corpus}", "save_dir=out") == 130
    code, told = verify("out")
    assert code == 1 and "last run: interrupted by SIGINT; it did not reach 3 utterances" in told


def test_no_file_is_removed_whatever_the_lists_name(out: Path, tmp_path: Path) -> None:
    precious = [tmp_path / "precious.txt", tmp_path / "x_emb.npy", out / "notes.txt"]
    for path in precious:
        path.write_text("precious")
    with (out / "metadata.csv").open("a") as file:
        names = ["../precious.txt", str(tmp_path / "x_emb.npy"), "notes.txt", "../x_emb.npy"]
        file.writelines(f"{number},/a{number}.wav,,{name},0\n" for number, name in enumerate(names))
    assert verify(out, "--forget")[1].splitlines()[-1].startswith("4 taken off the list")
    assert [path.read_text() for path in precious] == ["precious"] * 3


def test_a_record_that_does_not_fit_forgets_nothing(out: Path) -> None:
    before = embeddings(out)
    kept = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**kept, "embedding_dim": 512}))
    code, told = verify(out, "--forget")
    assert code == 1 and "embeddings of 512 numbers, found of 32" in told and embeddings(out) == before
    assert "0 taken off the list" in told


def test_embeddings_of_the_recorded_size_are_kept_however_many_have_another(out: Path) -> None:
    right, *others = sorted(out.rglob("*_emb.npy"))
    text = (out / "metadata.csv").read_text()
    for path in others:
        before = checksum(path.read_bytes())
        write(path, read_embedding(path)[:16].copy())
        text = text.replace(before, checksum(path.read_bytes()))
    (out / "metadata.csv").write_text(text)
    assert verify(out, "--forget")[1].splitlines()[-1].startswith("5 taken off the list")
    assert [row["embedding"] for row in rows(out / "metadata.csv")] == [str(right.relative_to(out))]


def test_a_name_that_is_not_utf_8_is_told_all_the_same(out: Path) -> None:
    write(out / "stray\udce9_emb.npy", np.ones(32, np.float32))
    done = run_command("balr", "verify", str(out), cwd=out.parent, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 1 and "stray\\udce9_emb.npy: not in metadata.csv" in done.stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "id,audio,speaker,embedding,crc32\na,/a\0.wav,,a,0\nb,/b.wav,,b,0\n"),
        ("metadata.csv", "id,audio,speaker,embedding,crc32\na,/a.wav,,x\0/a_emb.npy,0\nb,/b.wav,,b,0\n"),
        ("run.json", '{"model": {}, "forcing": false, "embedding_dim": Infinity, "runs": []}'),
        ("run.json", "[" * 200_000),
        ("durations.csv", "audio,bytes,changed_ns,seconds,sample_rate_hz\nx,1,1,1e308,1\n"),
    ],
)
def test_hostile_lists_are_one_line(
    balr: Command, out: Path, corpus: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    state = (corpus / "spk0" / "utt0.wav").stat()
    key = f"{corpus}/spk0/utt0.wav,{state.st_size},{state.st_mtime_ns}"
    (out / name).write_text(text.replace("x,1,1,", f"{key},"))
    (out / "spk0" / "utt0_emb.npy").unlink()
    capsys.readouterr()
    code = balr(f"input={corpus}", "save_dir=out")
    told = capsys.readouterr().err
    if name == "durations.csv":  # it is a cache, and done without
        assert code == 0
        return
    assert code == 2 and len(told.splitlines()) == 1 and str(out / name) in told
    code, told = verify(out, "--forget")
    assert code in (1, 2) and "Traceback" not in told and f"{out / name}" in told


def test_what_cannot_be_read_is_told_and_never_removed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = embeddings(out)

    def refuse(path: str) -> bytes:
        if path.endswith("utt0_emb.npy"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return Path(path).read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr("balr.stores.reading.read_content", refuse)
        code, told = verify(out, "--forget")
    assert (
        code == 1
        and "broken: spk0/utt0.wav" in told
        and "Input/output error" in told
        and "0 taken off the list" in told
    )
    assert embeddings(out) == before


def test_an_id_that_reads_like_something_else_is_an_id(balr: Command, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write_wav(tmp_path / f"{name}.wav", speechlike(1.0, seed=number))
    (tmp_path / "list.csv").write_text("id,audio\nlast run,a.wav\nrun.json,b.wav\nmetadata.csv,c.wav\n")
    assert balr("input=list.csv", "save_dir=out") == 0
    before = embeddings(tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "run.json").read_text())
    kept["runs"][0].pop("counts")
    (tmp_path / "out" / "run.json").write_text(json.dumps(kept))
    (tmp_path / "out" / "b_emb.npy").unlink()
    code, told = verify("out", "--forget")
    assert code == 1 and "1 taken off the list" in told
    assert embeddings(tmp_path / "out") == {name: one for name, one in before.items() if name != "b_emb.npy"}


def test_failures_of_another_corpus_are_found(out: Path, corpus: Path) -> None:
    (out / "failures.csv").write_text("id,audio,stage,reason\nelsewhere,/x.wav,decode,bad\n")
    code, told = verify(out, corpus)
    assert code == 1 and "extra: elsewhere: not in the corpus" in told


def test_a_run_below_the_folder_is_not_of_it(balr: Command, out: Path, corpus: Path) -> None:
    assert balr(f"input={corpus}", f"save_dir={out}/inner", "embeddings.model.features.window_type=povey") == 0
    assert verify(out, corpus)[0] == 0


def test_a_run_that_was_killed_is_unfinished_and_what_it_saved_is_counted(
    balr: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_off_after(patch, 2)
        assert balr(f"input={corpus}", "save_dir=out") == 2
    code, told = verify("out", corpus)
    assert code == 1 and "unfinished: last run: OutputError" not in told and "unfinished: last run:" in told
    assert re.search(r"in metadata.csv +2\n +whole +2", told) and "4 missing" in told and "extra" not in told
