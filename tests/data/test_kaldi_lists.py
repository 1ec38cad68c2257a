"""A Kaldi data folder is a corpus: recordings, segments, speakers and durations."""

from pathlib import Path

import pytest
from conftest import Command, speechlike, write_wav

from balr.data.corpus import Corpus
from balr.errors import InputError


@pytest.fixture
def kaldi_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "kaldi"
    for number in range(2):
        write_wav(folder / f"{number}.wav", speechlike(3.0, seed=number))
    (folder / "wav.scp").write_text("r0 0.wav\nr1 1.wav\n")
    (folder / "segments").write_text("u0 r0 0.5 1.5\nu1 r1 1.0 2.5\nu2 r1 0 -1\n")
    (folder / "utt2spk").write_text("u0 alice\nu1 bob\nu2 bob\n")
    (folder / "utt2dur").write_text("u0 1.0\n")
    return folder


def test_a_kaldi_data_folder_is_a_corpus_with_segments_speakers_and_durations(
    balr: Command, kaldi_folder: Path, tmp_path: Path
) -> None:
    utterances = Corpus.from_path(kaldi_folder).utterances
    assert [(u.id, u.speaker, u.duration_seconds) for u in utterances] == [
        ("u0", "alice", 1.0),
        ("u1", "bob", None),
        ("u2", "bob", None),
    ]
    assert balr(f"input={kaldi_folder}", "save_dir=out", "store=kaldi") == 0
    assert (tmp_path / "out" / "utt2spk").read_text() == (kaldi_folder / "utt2spk").read_text()


def test_what_is_wrong_in_a_kaldi_data_folder_is_named_by_its_line(kaldi_folder: Path) -> None:
    for name, text, reason in (
        ("segments", "u0 r9 0 1\n", r"segments:1: recording 'r9' is not in wav.scp"),
        ("utt2spk", "u0 alice\nu1\n", r"utt2spk:2: expected 'id value'"),
        ("utt2dur", "u0 0\n", r"utt2dur:1: duration '0' is not a positive"),
        ("utt2dur", "u0 long\n", r"utt2dur:1: duration 'long' is not a number of seconds"),
    ):
        kept = (kaldi_folder / name).read_text()
        (kaldi_folder / name).write_text(text)
        with pytest.raises(InputError, match=reason):
            Corpus.from_path(kaldi_folder)
        (kaldi_folder / name).write_text(kept)
