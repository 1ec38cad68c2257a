"""balr's embeddings equal those of WeSpeaker's own classes and torchaudio's fbank on real speech."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from reference import Reference, cosine, relative_difference
from untrained_checkpoint import write_checkpoint

from balr.config import DataConfig
from balr.data.audio import load_waveform
from balr.data.dataset import AudioDataset
from balr.embeddings.wespeaker import WespeakerModel

TFMEL = {"n_mels": 72, "hop_length": 160, "win_length": 400, "n_fft": 512, "f_min": 20, "f_max": 7600}
TFMEL |= {"do_preemph": True, "norm_signal": True, "eps": 1e-8}
MEL_72 = {"fbank_args": {"num_mel_bins": 72, "frame_shift": 10, "frame_length": 25, "dither": 1.0}}


@dataclass(frozen=True)
class Case:
    architecture: str
    module: str
    embed_dim: int
    args: dict[str, Any] = field(default_factory=dict)
    dataset_args: dict[str, Any] | None = None


STATISTICS = {"feat_dim": 80, "pooling_func": "TSTP"}
# On the whole sample alone; ResNet34 shares the class of ResNet293, and smaller ones of two others come below.
SLOW = {"ResNet293", "Gemini_DF_ResNet114", "SimAM_ResNet34_ASP", "ERes2Net34_Base", "ReDimNetB2"}
CASES = (
    Case("ResNet34", "resnet", 256, STATISTICS | {"two_emb_layer": False}),
    Case("ResNet293", "resnet", 256, STATISTICS | {"two_emb_layer": False}),
    Case("ECAPA_TDNN_GLOB_c512", "ecapa_tdnn", 192, {"feat_dim": 80, "pooling_func": "ASTP"}),
    Case("CAMPPlus", "campplus", 512, STATISTICS),
    Case("Gemini_DF_ResNet114", "gemini_dfresnet", 256, STATISTICS | {"two_emb_layer": False}),
    Case("SimAM_ResNet34_ASP", "samresnet", 256),
    Case("ERes2Net34_Base", "eres2net", 512, STATISTICS | {"two_emb_layer": False}),
    Case("ReDimNetB2", "redimnet", 192, {"feat_dim": 72, "pooling_func": "ASTP"}, MEL_72),
    Case("ReDimNet2B0", "redimnet2", 192, {"feat_dim": 72}, {"frontend": "tfmel", "tfmel_args": TFMEL, "cmvn": False}),
)


def _assert_equal(case: Case, folder: Path, corpus: AudioDataset) -> None:
    write_checkpoint(
        folder, case.architecture, {**case.args, "embed_dim": case.embed_dim}, dataset_args=case.dataset_args, seed=7
    )
    reference = Reference(folder, case.module)
    model = WespeakerModel(model_repo="", model_name="avg_model.pt", model_dir=folder)
    pairs = model.extract_embeddings(corpus, False, DataConfig(num_workers=0))
    assert [id_ for id_, _ in pairs] == [utterance.id for utterance in corpus.utterances]
    waveforms = [load_waveform(utterance.audio, 16_000) for utterance in corpus.utterances if utterance.audio]
    together = model.embed(waveforms).numpy()
    assert model.takes_ragged_batches
    for utterance, (_, ours), in_a_batch in zip(corpus.utterances, pairs, together, strict=True):
        assert utterance.audio is not None
        theirs = reference.embed(utterance.audio)
        assert ours.shape == (case.embed_dim,)
        for embedding in (ours, in_a_batch):
            assert relative_difference(embedding, theirs) < 1e-4
            assert cosine(embedding, theirs) > 0.999999


SMALL = (
    Case("SimAM_ResNet34_ASP", "samresnet", 64, {"in_planes": 16}),
    Case("ReDimNetB0", "redimnet", 192, {"feat_dim": 72, "pooling_func": "ASTP"}, MEL_72),
)


@pytest.mark.parametrize(
    "case", [*(case for case in CASES if case.architecture not in SLOW), *SMALL], ids=lambda case: case.architecture
)
def test_embeddings_equal_wespeaker_on_two_utterances(case: Case, sample: Path, tmp_path: Path) -> None:
    corpus = AudioDataset.from_csv(sample / "metadata.csv")
    shortest = sorted(corpus.utterances, key=lambda utterance: utterance.audio.stat().st_size)[:2]
    _assert_equal(case, tmp_path / "checkpoint", corpus.filter(lambda utterance: utterance in shortest))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.architecture)
def test_embeddings_equal_wespeaker_on_the_whole_sample(case: Case, sample: Path, tmp_path: Path) -> None:
    _assert_equal(case, tmp_path / "checkpoint", AudioDataset.from_csv(sample / "metadata.csv"))
