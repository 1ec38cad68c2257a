"""Where embeddings go, and that what was saved is read back."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import speechlike, write_wav
from hypothesis import given
from hypothesis import strategies as st

from balr.data.dataset import AudioDataset
from balr.errors import OutputError, UtteranceError
from balr.records import Utterance


def at(*names: str, root: Path) -> AudioDataset:
    return AudioDataset([Utterance(name, root / name) for name in names], root)


def places(dataset: AudioDataset) -> list[str]:
    assert dataset.output_dir is not None
    return [str(dataset.vector_path(u).relative_to(dataset.output_dir)) for u in dataset.utterances]


def test_items_are_float32_waveforms_at_the_asked_rate(corpus: Path) -> None:
    item = AudioDataset.from_dir(corpus).at_rate(8_000)[0]
    assert item.id == "spk0/utt0.wav" and item.sample_rate_hz == 8_000
    assert item.audio is not None and item.audio.dtype == torch.float32
    assert item.audio.shape == (8_000,) and item.audio.abs().max() <= 1


def test_reading_a_bad_file_raises_and_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("text")
    with pytest.raises(UtteranceError, match="not readable as audio"):
        AudioDataset.from_dir(tmp_path)[0]


def test_embeddings_go_beside_the_audio_or_into_the_same_tree_elsewhere(tmp_path: Path) -> None:
    dataset = at("a/x.wav", "b/y.wav", root=tmp_path)
    assert dataset.vector_path(dataset.utterances[0]) == tmp_path / "a" / "x_emb.npy"
    dataset.set_output_dir(tmp_path / "out")
    assert places(dataset) == ["a/x_emb.npy", "b/y_emb.npy"]


def test_names_that_would_collide_keep_their_suffix(tmp_path: Path) -> None:
    dataset = at("x.wav", "x.flac", "y.wav", "x.wav.ogg", "spk.utt1.wav", "spk.utt2.wav", root=tmp_path)
    dataset.set_output_dir(tmp_path / "out")
    assert places(dataset) == [
        "x.wav_emb.npy",
        "x.flac_emb.npy",
        "y_emb.npy",
        "x.wav.ogg_emb.npy",
        "spk.utt1_emb.npy",
        "spk.utt2_emb.npy",
    ]


_part = st.text("ab._é -", min_size=1, max_size=4).filter(lambda text: text not in (".", ".."))
_file = st.builds("{}{}.{}".format, _part, st.just(""), st.sampled_from(["wav", "flac", "wav.ogg"]))
_paths = st.lists(
    st.builds("/".join, st.lists(_part, max_size=2).flatmap(lambda d: st.tuples(*map(st.just, d), _file)))
)


@given(names=_paths, absolute=st.booleans())
def test_two_files_never_share_an_embedding_and_none_leaves_the_output_folder(names: list[str], absolute: bool) -> None:
    root = Path("/corpus")
    files = {root / name for name in names} | ({Path("/elsewhere/x.wav")} if absolute else set())
    dataset = AudioDataset([Utterance(str(f), f) for f in files], root, output_dir="/out")
    found = [dataset.vector_path(u) for u in dataset.utterances]
    assert len(set(found)) == len(files)
    assert all(path.is_relative_to("/out") and ".." not in path.parts for path in found)


def test_filtering_does_not_move_embeddings(tmp_path: Path) -> None:
    dataset = at("x.wav", "x.flac", root=tmp_path)
    dataset.set_output_dir(tmp_path / "out")
    assert places(dataset.filter(lambda u: u.id == "x.wav")) == ["x.wav_emb.npy"]


@pytest.mark.parametrize("vector_format", ["npy", "txt"])
def test_saved_vectors_are_read_back_bit_for_bit(corpus: Path, tmp_path: Path, vector_format: str) -> None:
    dataset = AudioDataset.from_dir(corpus)
    dataset.vector_format = vector_format
    dataset.set_output_dir(tmp_path / "out")
    generator = np.random.default_rng(0)
    vectors = {u.id: generator.standard_normal(8).astype(np.float32) for u in dataset.utterances}
    written = dataset.save_vectors(vectors.items())
    assert all(dataset.vector_flaw(u) is None for u in dataset.utterances)
    listed = "id,embedding\n" + "\n".join(f"{id_},{path}" for id_, path in zip(vectors, written, strict=True))
    (tmp_path / "list.csv").write_text(listed)
    read = dict(AudioDataset.from_csv(tmp_path / "list.csv").embeddings())
    assert read.keys() == vectors.keys() and all(np.array_equal(read[id_], vectors[id_]) for id_ in vectors)
    for item in AudioDataset.from_csv(tmp_path / "list.csv"):
        assert item.audio is None and item.embedding is not None
        assert item.embedding.dtype == np.float32
        assert np.array_equal(item.embedding, vectors[item.id])


def test_saving_for_an_unknown_id_or_where_nothing_can_be_written_is_an_error(corpus: Path, tmp_path: Path) -> None:
    dataset = AudioDataset.from_dir(corpus)
    with pytest.raises(OutputError, match="no such utterance"):
        dataset.save_vector("nobody", np.zeros(3, np.float32))
    (tmp_path / "file").write_text("")
    dataset.set_output_dir(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        dataset.save_vector("spk0/utt0.wav", np.zeros(3, np.float32))


def test_a_failed_write_leaves_no_file_behind(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = AudioDataset.from_dir(corpus)
    dataset.set_output_dir(tmp_path / "out")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        dataset.save_vector("spk0/utt0.wav", np.zeros(3, np.float32))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_indexing_past_the_end_stops_iteration(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", speechlike(0.1))
    assert [item.id for item in AudioDataset.from_dir(tmp_path)] == ["a.wav"]
