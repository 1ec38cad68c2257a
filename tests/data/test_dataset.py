"""Where embeddings go, and that what was saved is read back."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import speechlike, write_wav

from balr.data.dataset import AudioDataset
from balr.errors import OutputError, UtteranceError
from balr.records import Utterance


def at(*names: str, root: Path) -> AudioDataset:
    return AudioDataset([Utterance(name, root / name) for name in names], root)


def places(dataset: AudioDataset) -> list[str]:
    assert dataset.output_dir is not None
    return [str(dataset.embedding_path(u).relative_to(dataset.output_dir)) for u in dataset.utterances]


def test_items_are_float32_waveforms_at_the_asked_rate(corpus: Path) -> None:
    dataset = AudioDataset.from_dir(corpus)
    dataset.sample_rate_hz = 8_000
    item = dataset[0]
    assert item.id == "spk0/utt0.wav" and item.sample_rate_hz == 8_000
    assert item.audio is not None and item.audio.dtype == torch.float32
    assert item.audio.shape == (8_000,) and item.audio.abs().max() <= 1


def test_reading_a_bad_file_raises_and_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("text")
    with pytest.raises(UtteranceError, match="not readable as audio"):
        AudioDataset.from_dir(tmp_path)[0]


def test_embeddings_go_beside_the_audio_or_into_the_same_tree_elsewhere(tmp_path: Path) -> None:
    dataset = at("a/x.wav", "b/y.wav", root=tmp_path)
    assert dataset.embedding_path(dataset.utterances[0]) == tmp_path / "a" / "x_emb.npy"
    dataset.set_output_dir(tmp_path / "out")
    assert places(dataset) == ["a/x_emb.npy", "b/y_emb.npy"]


@pytest.mark.parametrize("vector_format", ["npy", "txt"])
def test_saved_embeddings_are_read_back_bit_for_bit(corpus: Path, tmp_path: Path, vector_format: str) -> None:
    dataset = AudioDataset.from_dir(corpus)
    dataset.vector_format = vector_format
    dataset.set_output_dir(tmp_path / "out")
    generator = np.random.default_rng(0)
    saved = {u.id: generator.standard_normal(8).astype(np.float32) for u in dataset.utterances}
    written = dataset.save_embeddings(saved.items())
    listed = "id,embedding\n" + "\n".join(f"{id_},{path}" for id_, path in zip(saved, written, strict=True))
    (tmp_path / "list.csv").write_text(listed)
    read = dict(AudioDataset.from_csv(tmp_path / "list.csv").embeddings())
    assert read.keys() == saved.keys() and all(np.array_equal(read[id_], saved[id_]) for id_ in saved)
    for item in AudioDataset.from_csv(tmp_path / "list.csv"):
        assert item.audio is None and item.embedding is not None
        assert item.embedding.dtype == np.float32
        assert np.array_equal(item.embedding, saved[item.id])


def test_saving_for_an_unknown_id_or_where_nothing_can_be_written_is_an_error(corpus: Path, tmp_path: Path) -> None:
    dataset = AudioDataset.from_dir(corpus)
    with pytest.raises(OutputError, match="no such utterance"):
        dataset.save_embeddings([("nobody", np.zeros(3, np.float32))])
    (tmp_path / "file").write_text("")
    dataset.set_output_dir(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        dataset.save_embeddings([("spk0/utt0.wav", np.zeros(3, np.float32))])


def test_a_failed_write_leaves_no_file_behind(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = AudioDataset.from_dir(corpus)
    dataset.set_output_dir(tmp_path / "out")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        dataset.save_embeddings([("spk0/utt0.wav", np.zeros(3, np.float32))])
    assert not list((tmp_path / "out").rglob("*.*"))


def test_indexing_past_the_end_stops_iteration(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", speechlike(0.1))
    assert [item.id for item in AudioDataset.from_dir(tmp_path)] == ["a.wav"]
