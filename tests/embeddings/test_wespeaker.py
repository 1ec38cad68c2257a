"""The model and the loop: lengths, short audio, workers, failures."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, speechlike, write_wav
from reference import Reference, relative_difference
from untrained_checkpoint import write_checkpoint

from balr.config import DataConfig, FeaturesConfig
from balr.data.dataset import AudioDataset
from balr.embeddings.fbank import FbankSettings, fbank
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError, UtteranceError

SERIAL = DataConfig(num_workers=0)

# Shortest audio that each architecture can embed, in frames of 10 ms after the first 25 ms.
SHORTEST_FRAMES = {"ResNet18": 9, "CAMPPlus": 3, "ECAPA_TDNN_GLOB_c512": 2, "Gemini_DF_ResNet60": 3, "XVEC": 16}


@pytest.fixture(scope="session")
def model(tiny_campplus: Path) -> WespeakerModel:
    return WespeakerModel("", "avg_model.pt", model_dir=tiny_campplus)


def test_embeddings_are_the_same_with_and_without_worker_processes(model: WespeakerModel, corpus: Path) -> None:
    dataset = AudioDataset.from_dir(corpus)
    alone = model.extract_embeddings(dataset, False, SERIAL)
    for workers in (1, 4):
        together = model.extract_embeddings(dataset, False, DataConfig(num_workers=workers, prefetch_factor=1))
        assert [id_ for id_, _ in together] == [id_ for id_, _ in alone]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(together, alone, strict=True))


def test_embeddings_equal_the_reference(model: WespeakerModel, tiny_campplus: Path, corpus: Path) -> None:
    reference = Reference(tiny_campplus, "campplus")
    for id_, ours in model.extract_embeddings(AudioDataset.from_dir(corpus), False, SERIAL):
        assert relative_difference(ours, reference.embed(corpus / id_)) < 1e-4


def test_saving_as_computed_returns_nothing_and_writes_the_same(
    model: WespeakerModel, corpus: Path, tmp_path: Path
) -> None:
    dataset = AudioDataset.from_dir(corpus)
    expected = dict(model.extract_embeddings(dataset, False, SERIAL))
    dataset.set_output_dir(tmp_path / "out")
    assert model.extract_embeddings(dataset, True, SERIAL) == []
    for utterance in dataset.utterances:
        saved = np.load(dataset.embedding_path(utterance))
        assert saved.dtype == np.float32 and np.array_equal(saved, expected[utterance.id])


def test_a_bad_utterance_is_logged_and_the_others_are_embedded(
    model: WespeakerModel, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (corpus / "spk0" / "text.wav").write_text("not audio")
    write_wav(corpus / "spk1" / "short.wav", speechlike(0.01))
    with caplog.at_level(logging.WARNING):
        pairs = model.extract_embeddings(AudioDataset.from_dir(corpus), False, DataConfig(num_workers=2))
    assert len(pairs) == 6
    assert "spk0/text.wav: not readable as audio" in caplog.text
    assert "spk1/short.wav: too short" in caplog.text


def test_utterances_without_audio_are_skipped(model: WespeakerModel, corpus: Path) -> None:
    np.save(corpus / "v.npy", np.zeros(3, np.float32))
    (corpus / "list.csv").write_text("id,audio,embedding\na,spk0/utt0.wav,\nb,,v.npy\n")
    pairs = model.extract_embeddings(AudioDataset.from_csv(corpus / "list.csv"), False, SERIAL)
    assert [id_ for id_, _ in pairs] == ["a"]


@pytest.mark.parametrize(("architecture", "frames"), list(SHORTEST_FRAMES.items()))
def test_audio_below_the_architecture_s_shortest_input_is_refused_with_its_length(
    tmp_path: Path, architecture: str, frames: int
) -> None:
    pooling = "ASTP" if architecture.startswith("ECAPA") else "TSTP"
    args = TINY if architecture == "CAMPPlus" else {"feat_dim": 80, "embed_dim": 16, "pooling_func": pooling}
    model = WespeakerModel("", "avg_model.pt", model_dir=write_checkpoint(tmp_path / "c", architecture, args))
    shortest = 400 + (frames - 1) * 160
    assert model.embed([torch.from_numpy(speechlike(1.0)[:shortest])]).isfinite().all()
    with pytest.raises(UtteranceError, match=rf"too short: .* {architecture} needs {shortest / 16_000:.3f} s"):
        model.embed([torch.from_numpy(speechlike(1.0)[: shortest - 160])])


def test_an_embedding_that_is_not_finite_is_a_failure_and_not_a_file(
    model: WespeakerModel,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_wav(corpus / "spk0" / "silence.wav", np.zeros(16_000, np.float32))
    whole = WespeakerModel.embed

    def nan_for_silence(self: WespeakerModel, waveforms: list[torch.Tensor], **settings: float) -> torch.Tensor:
        return whole(self, waveforms, **settings) * (float("nan") if not waveforms[0].any() else 1.0)

    monkeypatch.setattr(WespeakerModel, "embed", nan_for_silence)
    dataset = AudioDataset.from_dir(corpus)
    dataset.set_output_dir(tmp_path / "out")
    model.extract_embeddings(dataset, True, SERIAL)
    assert "spk0/silence.wav: the embedding is not finite (digital silence)" in caplog.text
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 6


def test_feature_overrides_change_only_what_they_name(tiny_campplus: Path) -> None:
    waveform = torch.from_numpy(speechlike(1.0))
    usual = FbankSettings()
    assert torch.equal(fbank(waveform, usual), fbank(waveform, replace(usual)))
    assert not torch.allclose(fbank(waveform, usual), fbank(waveform, replace(usual, window_type="povey")))
    assert fbank(waveform, replace(usual, mean_norm=False)).mean() > 1
    assert fbank(waveform, usual).mean(dim=0).abs().max() < 1e-4
    quiet = fbank(waveform * 1e-4, replace(usual, int16_scale=False))
    assert not torch.allclose(quiet, fbank(waveform * 1e-4, usual), atol=0.1)


def test_a_tfmel_checkpoint_takes_no_fbank_settings(tmp_path: Path) -> None:
    dataset_args = {"frontend": "tfmel", "tfmel_args": {"n_mels": 72, "norm_signal": True}}
    folder = write_checkpoint(
        tmp_path / "c", "ReDimNet2B0", {"feat_dim": 72, "embed_dim": 16}, dataset_args=dataset_args
    )
    with pytest.raises(ConfigError, match="has its own front end"):
        WespeakerModel("", "avg_model.pt", model_dir=folder, features=FeaturesConfig(num_mel_bins=72))


def test_the_specified_signature_takes_positions(tiny_campplus: Path, corpus: Path) -> None:
    model = WespeakerModel(
        "Wespeaker/wespeaker-voxceleb-campplus", "avg_model.pt", "config.yaml", tiny_campplus, "cpu", FeaturesConfig()
    )
    assert len(model.extract_embeddings(AudioDataset.from_path(corpus), False, DataConfig())) == 6
