"""No two files share the name of an embedding, on any file system, and every name fits in one."""

import os
import unicodedata
from pathlib import Path

import pytest
from conftest import Command, rows, speechlike, vectors, write_wav

from balr.data.corpus import Corpus
from balr.data.places import stored_names
from balr.errors import OutputError
from balr.records import Utterance

COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "é.wav"), unicodedata.normalize("NFD", "é.wav")


def names(*files: str) -> list[str]:
    paths = [Path("/corpus") / file for file in files]
    found = stored_names(paths)
    return [found[path] for path in paths]


def folded(file: str, name: str) -> str:
    return unicodedata.normalize("NFKC", f"{os.path.dirname(file)}/{name}").casefold()


@pytest.mark.parametrize(
    "files",
    [
        ("A.wav", "a.wav"),
        ("Spk/a.wav", "spk/a.wav"),
        (COMPOSED, DECOMPOSED),
        ("\ufb01.wav", "fi.wav", "FI.WAV", "fi.flac"),
        ("straße.wav", "STRASSE.wav"),
        ("x.wav", "x.flac", "X.wav.mp3", "x.wav.mp3", "x"),
    ],
)
def test_names_differ_on_file_systems_that_fold_case_and_accents(files: tuple[str, ...]) -> None:
    found = [folded(file, name) for file, name in zip(files, names(*files), strict=True)]
    assert len(set(found)) == len(files)
    again = names(*reversed(files))
    assert names(*files) == list(reversed(again)), "whatever the order of the list"


def test_names_without_a_clash_are_the_stems() -> None:
    assert names("a.wav", "b/a.wav", "con.wav", "NUL.flac", "c.d.wav", ".e.wav") == [
        "a",
        "a",
        "con",
        "NUL",
        "c.d",
        ".e",
    ]


def test_a_name_as_long_as_a_file_may_have_leaves_room_for_the_suffix() -> None:
    long = [f"{'é' * 120}{end}.wav" for end in ("aaaaaaaa", "bbbbbbbb")]
    found = names(*long)
    assert len(set(found)) == 2 and all(len(os.fsencode(f"{name}_emb.npy")) <= 255 for name in found)


def test_long_names_and_look_alikes_are_embedded_and_read_back(balr: Command, tmp_path: Path) -> None:
    for number, name in enumerate((f"{'n' * 251}.wav", f"{'n' * 250}m.wav", COMPOSED, DECOMPOSED, "A.wav", "a.wav")):
        write_wav(tmp_path / "corpus" / name, speechlike(0.5, seed=number))
    assert balr("input=corpus", "save_dir=out") == 0
    assert len(vectors(tmp_path / "out")) == len(rows(tmp_path / "out" / "metadata.csv")) == 6
    assert len(set(vectors(tmp_path / "out").values())) == 6
    assert balr("input=corpus", "save_dir=out") == 0


def test_a_path_too_long_for_any_file_costs_its_utterance_alone(balr: Command, tmp_path: Path) -> None:
    deep = Path(*["d" * 200] * 12)
    write_wav(tmp_path / "corpus" / "a.wav", speechlike(0.5))
    folder = os.open(tmp_path / "corpus", os.O_DIRECTORY)
    try:
        for part in deep.parts:
            os.mkdir(part, dir_fd=folder)
            inner = os.open(part, os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        audio = os.open("b.wav", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
        os.write(audio, (tmp_path / "corpus" / "a.wav").read_bytes())
        os.close(audio)
    finally:
        os.close(folder)
    save_dir = "/".join([str(tmp_path), *("s" * 200 for _ in range(9))])
    assert len(f"{save_dir}/{deep}/b_emb.npy") > 4096 > len(str(tmp_path / "corpus" / deep / "b.wav"))
    assert balr("input=corpus", f"save_dir={save_dir}") == 1
    (failure,) = rows(Path(save_dir) / "failures.csv")
    assert failure["stage"] == "write" and "File name too long" in failure["reason"]
    assert (Path(save_dir) / "a_emb.npy").exists()


@pytest.mark.parametrize("linked", ["spk0", "spk0/inner"])
def test_a_linked_folder_in_save_dir_leads_nowhere(tmp_path: Path, linked: str) -> None:
    (tmp_path / "outside").mkdir()
    link = tmp_path / "out" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    found = Corpus([Utterance("u", tmp_path / "spk0" / "inner" / "u.wav")], tmp_path, output_dir=tmp_path / "out")
    with pytest.raises(OutputError, match="is a link"):
        found.refuse_foreign_folders()


def test_a_run_writes_through_no_link(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "spk0").symlink_to(outside)
    assert balr(f"input={corpus}", "save_dir=out") == 2
    assert "is a link" in capsys.readouterr().err and not list(outside.iterdir())
    (tmp_path / "linked").symlink_to(outside)
    assert balr(f"input={corpus}", "save_dir=linked") == 0, "save_dir itself may be one"
    target = tmp_path / "target"
    target.write_bytes((outside / "metadata.csv").read_bytes())
    before = target.read_bytes()
    for path in [*outside.rglob("utt0_emb.npy"), outside / "metadata.csv"]:
        path.unlink()
        path.symlink_to(target)
    assert balr(f"input={corpus}", "save_dir=linked", "force=true") == 0
    assert target.read_bytes() == before
