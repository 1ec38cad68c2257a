"""What a corpus is: csv, folder, file and scp; every problem has one line with file and line number."""

import errno
import os
import re
import tarfile
from pathlib import Path

import pytest
from conftest import speechlike, write_wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balr.data.corpus import Corpus
from balr.data.dataset import AudioDataset
from balr.errors import InputError


def csv_file(folder: Path, text: str, *, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def test_a_csv_gives_its_utterances_in_order_and_keeps_other_columns(corpus: Path) -> None:
    path = csv_file(corpus, "speaker,audio,id,gender\nb,spk1/utt1.wav,two,f\na,spk0/utt0.wav,one,m\n")
    dataset = AudioDataset.from_path(path)
    assert [(u.id, u.speaker, u.extra) for u in dataset.utterances] == [
        ("two", "b", {"gender": "f"}),
        ("one", "a", {"gender": "m"}),
    ]
    assert dataset.utterances[0].audio == corpus / "spk1/utt1.wav"


def test_spaces_around_column_names_do_not_hide_a_column(corpus: Path) -> None:
    dataset = AudioDataset.from_csv(csv_file(corpus, "audio, speaker, id\nspk0/utt0.wav,s,a\n"))
    assert [(u.id, u.speaker, u.extra) for u in dataset.utterances] == [("a", "s", {})]


def test_without_an_id_column_the_audio_path_is_the_id(corpus: Path) -> None:
    dataset = AudioDataset.from_csv(csv_file(corpus, "audio\nspk1/utt1.wav\n"))
    assert [u.id for u in dataset.utterances] == ["spk1/utt1.wav"]
    assert dataset.utterances[0].speaker is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_names_with_accents_commas_and_quotes_are_read(tmp_path: Path, encoding: str) -> None:
    name = 'é, "x".wav'
    write_wav(tmp_path / name, speechlike(0.1))
    path = csv_file(tmp_path, 'audio\n"é, ""x"".wav"\n', encoding=encoding)
    assert AudioDataset.from_csv(path).utterances[0].id == name


def test_relative_paths_start_at_the_csv_or_at_root_dir(corpus: Path, tmp_path: Path) -> None:
    elsewhere = csv_file(tmp_path / "lists", "audio\nspk0/utt0.wav\n")
    with pytest.raises(InputError, match="does not exist"):
        AudioDataset.from_csv(elsewhere)
    dataset = AudioDataset.from_csv(elsewhere, root_dir=corpus)
    assert dataset.utterances[0].audio == corpus / "spk0/utt0.wav"


def test_absolute_paths_are_taken_as_they_are(corpus: Path, tmp_path: Path) -> None:
    path = csv_file(tmp_path, f"audio\n{corpus / 'spk0/utt0.wav'}\n")
    assert AudioDataset.from_csv(path).utterances[0].audio == corpus / "spk0/utt0.wav"


def test_a_folder_is_searched_for_formats_in_any_case_with_posix_ids(tmp_path: Path) -> None:
    for name in ("b/two.WAV", "a/one.wav", "a/notes.txt", "three.Flac"):
        write_wav(tmp_path / "c" / name, speechlike(0.1))
    found = [u.id for u in AudioDataset.from_path(tmp_path / "c").utterances]
    assert found == ["a/one.wav", "b/two.WAV", "three.Flac"]
    only = AudioDataset.from_dir(tmp_path / "c", audio_formats=[".FLAC"])
    assert [u.id for u in only.utterances] == ["three.Flac"]


def test_hidden_files_and_broken_links_are_skipped_with_a_count(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    (corpus / "._utt0.wav").write_bytes(b"resource fork")
    (corpus / "gone.wav").symlink_to(corpus / "nowhere.wav")
    (corpus / "itself.wav").symlink_to("itself.wav")
    (corpus / "there.wav").symlink_to("back.wav")
    (corpus / "back.wav").symlink_to("there.wav")
    (corpus / "folder").symlink_to("folder")
    assert len(AudioDataset.from_dir(corpus)) == 6
    assert "skipped 1 hidden files and 4 broken links" in caplog.text


def test_a_folder_that_cannot_be_read_is_refused_also_where_tars_lie_beside_the_audio(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith("spk1"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    with tarfile.open(corpus / "x.tar", "w") as archive:
        archive.add(corpus / "spk0" / "utt0.wav", arcname="a.wav")
    assert len(AudioDataset.from_dir(corpus)) == 6
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"spk1: cannot be read: Permission denied"):
        AudioDataset.from_dir(corpus)


def test_linked_folders_are_followed_and_a_link_upwards_ends(corpus: Path, tmp_path: Path) -> None:
    (corpus / "loop").symlink_to(corpus)
    outside = tmp_path / "outside"
    write_wav(outside / "far.wav", speechlike(0.1))
    (corpus / "linked").symlink_to(outside)
    found = [u.id for u in AudioDataset.from_dir(corpus).utterances]
    assert "linked/far.wav" in found and len(found) == 7


def test_an_scp_is_read_and_its_commands_are_refused(corpus: Path) -> None:
    scp = csv_file(corpus, "u1 spk0/utt0.wav\n\nu2\tspk1/utt1.wav\n", name="wav.scp")
    assert [u.id for u in AudioDataset.from_path(scp).utterances] == ["u1", "u2"]
    scp.write_text(f"u1 spk0/utt0.wav\nu2 touch {corpus}/run |\n")
    with pytest.raises(InputError, match=r"wav.scp:2: commands are not run"):
        AudioDataset.from_path(scp)
    assert not (corpus / "run").exists()


def test_a_single_file_is_a_corpus_of_one(corpus: Path) -> None:
    dataset = AudioDataset.from_path(corpus / "spk0" / "utt0.wav")
    assert [u.id for u in dataset.utterances] == ["utt0.wav"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,who\nspk0/utt0.wav,a\n", r":1: no column 'audio' or 'embedding'; found file, who"),
        ("audio;id\nspk0/utt0.wav;a\n", r"other than a comma"),
        ("audio,audio\na,b\n", r":1: column audio appears more than once"),
        ("audio,id\n", r"no utterances"),
        ("", r":1: no column"),
        ("audio,id\nspk0/utt0.wav,a\nspk0/utt0.wav,b\nspk1/utt1.wav,a\nspk1/utt1.wav,b\n", r":4: 2 repeated ids.*'a'"),
        ("audio,id\nspk0/utt0.wav,a\nx.wav,b\ny.wav,c\n", r":3: 2 utterances whose file does not exist.*x.wav"),
        ("audio,id\n../../etc/passwd,a\n", r":2: '../../etc/passwd' leads out of the corpus folder"),
        ("audio,id\nspk0/../../x.wav,a\n", r":2: .* leads out of the corpus folder"),
        ("audio,id\nspk0/utt0.wav\n", r":2: the number of cells"),
        ("audio,id\nspk0/utt0.wav,a,b\n", r":2: the number of cells"),
        ("audio,id\nspk0/utt0.wav,\n", r":2: 1 utterances without an id"),
        ("audio,id\n,a\n", r":2: neither audio nor embedding"),
        ("audio,id\n" + "x" * 200_000 + ",a\n", r"not a csv: field larger"),
    ],
)
def test_a_bad_csv_is_one_line_that_says_where(corpus: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        AudioDataset.from_csv(csv_file(corpus, text))
    assert "\n" not in str(error.value)


def test_file_names_that_are_not_utf_8_are_read_byte_for_byte(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    write_wav(tmp_path / "a.wav", speechlike(0.1)).rename(tmp_path / name)
    (tmp_path / "list.csv").write_bytes(b"audio\ncaf\xe9.wav\n")
    (tmp_path / "wav.scp").write_bytes(b"u caf\xe9.wav\n")
    for source in (tmp_path, tmp_path / "list.csv", tmp_path / "wav.scp"):
        (item,) = AudioDataset.from_path(source)
        assert item.audio is not None and item.audio_path == tmp_path / name


@pytest.mark.parametrize("cell", [".", "x/..", "~nobody-here/x.wav", "x" * 300 + ".wav", "a\0.wav"])
def test_a_path_that_cannot_be_a_file_is_one_line(tmp_path: Path, cell: str) -> None:
    (tmp_path / "list.csv").write_text(f"audio,id\n{cell},a\n")
    with pytest.raises(InputError, match=r"list.csv:2: "):
        AudioDataset.from_csv(tmp_path / "list.csv")


def test_a_path_that_does_not_exist_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        AudioDataset.from_path(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no audio files"):
        AudioDataset.from_path(tmp_path / "empty")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cells=st.lists(st.lists(st.text(max_size=12), max_size=4), max_size=6))
def test_any_text_as_csv_is_read_or_refused_in_one_line(tmp_path: Path, cells: list[list[str]]) -> None:
    path = tmp_path / "list.csv"
    body = "\n".join(",".join(row) for row in cells)
    path.write_text(f"audio,id\n{body}", encoding="utf-8", errors="surrogatepass", newline="")
    with pytest.raises(InputError) as error:
        AudioDataset.from_csv(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("list.csv", "id,audio\na,a.wav\n".encode("utf-16"), "Is it UTF-8?"),
        ("wav.scp", b"x" * 200_000 + b" a.wav\n", "with an id of over 100,000 characters"),
        ("list.csv", b"id,audio\na,.\n", "does not exist or is no file"),
        ("list.csv", b"id,audio\na,../a.wav\n", "write absolute paths, or set root_dir"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_in_words(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(told)) as refused:
        Corpus.from_path(tmp_path / name)
    assert str(refused.value).isprintable()


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.csv").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match="cannot be read"):
        Corpus.from_path(tmp_path / "list.csv")


def test_a_txt_is_a_list_of_paths_one_a_line(corpus: Path) -> None:
    (corpus / "list.txt").write_text("spk0/utt0.wav\n\nspk1/utt1.wav \n")
    utterances = Corpus.from_path(corpus / "list.txt").utterances
    assert [u.id for u in utterances] == ["spk0/utt0.wav", "spk1/utt1.wav"]
    assert utterances[1].audio == corpus / "spk1" / "utt1.wav"
    (corpus / "list.txt").write_text("spk0/utt0.wav\nnowhere.wav\n")
    with pytest.raises(InputError, match=r"list.txt:2: 1 utterances whose file does not exist"):
        Corpus.from_path(corpus / "list.txt")


@pytest.mark.parametrize("column", ["wav", "path", "File"])
def test_a_column_that_is_meant_as_audio_is_suggested(tmp_path: Path, column: str) -> None:
    (tmp_path / "list.csv").write_text(f"id,{column}\na,a.wav\n")
    with pytest.raises(InputError, match=f"Is '{column}' meant as 'audio'"):
        Corpus.from_path(tmp_path / "list.csv")


@pytest.mark.parametrize("duration", ["-1", "0", "abc", "nan", "1:30"])
def test_a_duration_that_is_no_number_of_seconds_is_refused(corpus: Path, duration: str) -> None:
    (corpus / "list.csv").write_text(f"audio,duration\nspk0/utt0.wav,{duration}\n")
    with pytest.raises(InputError, match=r"list.csv:2: duration .* is not a"):
        Corpus.from_path(corpus / "list.csv")
