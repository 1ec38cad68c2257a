"""The file of an embedding is a function of its utterance alone; two utterances that would share one are refused."""

import os
from pathlib import Path

import pytest
from conftest import Command, embeddings, rows, speechlike, write_wav
from hypothesis import given
from hypothesis import strategies as st

from balr.errors import InputError
from balr.records import WHOLE, Part, Utterance
from balr.stores.places import embedding_file, refuse_shared_files

ROOT = "/corpus"


def file_of(path: str, part: Part = WHOLE, *, output_dir: str | None = "/out") -> str:
    return embedding_file(Utterance(path, Path(path), part=part), ".npy", root=ROOT, output_dir=output_dir)


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ("/corpus/a/x.wav", "/out/a/x_emb.npy"),
        ("/corpus/c.d.wav", "/out/c.d_emb.npy"),
        ("/corpus/.e.wav", "/out/.e_emb.npy"),
        ("/elsewhere/x.wav", "/out/elsewhere/x_emb.npy"),
        ("/corpus2/x.wav", "/out/corpus2/x_emb.npy"),
    ],
)
def test_an_embedding_goes_into_the_tree_of_the_corpus(audio: str, expected: str) -> None:
    assert file_of(audio) == expected


def test_a_part_adds_its_times_and_its_channel() -> None:
    part = Part(start_seconds=1.5, end_seconds=3.25, channel=0)
    assert file_of("/corpus/talk.wav", part) == "/out/talk_1.5-3.25_ch0_emb.npy"
    assert file_of("/corpus/talk.wav", part, output_dir=None) == "/corpus/talk_1.5-3.25_ch0_emb.npy"


_name = st.text("ab._é -", min_size=1, max_size=5).filter(lambda text: text not in (".", ".."))
_paths = st.builds(lambda parts: "/corpus/" + "/".join(parts) + ".wav", st.lists(_name, min_size=1, max_size=3))


@given(path=_paths)
def test_no_embedding_leaves_the_output_folder(path: str) -> None:
    found = Path(file_of(path))
    assert found.is_relative_to("/out") and ".." not in found.parts


@given(names=st.lists(st.integers(0, 2**40), min_size=2, max_size=2, unique=True))
def test_a_name_as_long_as_a_file_may_have_leaves_room_and_stays_apart(names: list[int]) -> None:
    found = [
        os.path.basename(file_of(f"/corpus/{'é' * 120}{number:013}.wav", Part(1, 123456.5, 12))) for number in names
    ]
    assert len(set(found)) == 2 and all(len(os.fsencode(f"{name}.tmp")) <= 255 for name in found)


@pytest.mark.parametrize(
    ("paths", "folds_case", "is_shared"),
    [
        (("/corpus/x.wav", "/corpus/x.flac"), False, True),
        (("/corpus/x.wav", "/corpus/X.wav"), False, False),
        (("/corpus/x.wav", "/corpus/X.wav"), True, True),
        (("/corpus/e\u0301.wav", "/corpus/\u00e9.wav"), True, True),
        (("/corpus/straße.wav", "/corpus/STRASSE.wav"), True, True),
        (("/corpus/elsewhere/x.wav", "/elsewhere/x.wav"), False, True),
        (("/corpus/a/x.wav", "/corpus/b/x.wav"), True, False),
    ],
)
def test_two_utterances_that_would_share_a_file_are_refused(
    paths: tuple[str, str], folds_case: bool, is_shared: bool
) -> None:
    utterances, files = [Utterance(path, Path(path)) for path in paths], [file_of(path) for path in paths]
    if not is_shared:
        refuse_shared_files(utterances, files, folds_case=folds_case)
        return
    with pytest.raises(InputError, match="would share the embedding file"):
        refuse_shared_files(utterances, files, folds_case=folds_case)


def test_a_corpus_with_two_files_of_one_stem_is_refused_before_anything_is_written(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(corpus / "spk0" / "utt0.flac", speechlike(1.0))
    assert balr(f"input={corpus}", "save_dir=out") == 2
    assert "'spk0/utt0.flac' and 'spk0/utt0.wav' would share the embedding file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert balr(f"input={corpus}", "save_dir=out", "audio_formats=[wav]") == 0


def test_one_audio_under_two_ids_is_refused_and_its_segments_are_not(
    balr: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "a.wav", speechlike(2.0))
    (tmp_path / "list.csv").write_text("id,audio\none,a.wav\ntwo,a.wav\n")
    assert balr("input=list.csv", "save_dir=out") == 2
    assert "'one' and 'two' would share" in capsys.readouterr().err
    (tmp_path / "list.csv").write_text("id,audio,start,end\none,a.wav,0,1\ntwo,a.wav,1,2\n")
    assert balr("input=list.csv", "save_dir=out") == 0
    assert {row["embedding"] for row in rows(tmp_path / "out" / "metadata.csv")} == set(embeddings(tmp_path / "out"))
