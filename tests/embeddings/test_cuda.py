"""On an NVIDIA GPU: the same embeddings, in batches, in 16 bits, and with too little memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import speechlike, write_wav
from reference import Reference, cosine, relative_difference
from torchaudio.compliance import kaldi
from untrained_checkpoint import write_checkpoint

from balr.config import DataConfig
from balr.data.dataset import AudioDataset
from balr.embeddings.fbank import FbankSettings, fbanks
from balr.embeddings.wespeaker import WespeakerModel

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]

STATISTICS = {"feat_dim": 80, "embed_dim": 64, "pooling_func": "TSTP"}
CASES = (
    ("ResNet34", "resnet", STATISTICS),
    ("CAMPPlus", "campplus", STATISTICS),
    ("ECAPA_TDNN_GLOB_c512", "ecapa_tdnn", {**STATISTICS, "pooling_func": "ASTP"}),
    ("SimAM_ResNet34_ASP", "samresnet", {"embed_dim": 64}),
)


@pytest.fixture
def many(tmp_path: Path) -> AudioDataset:
    for number in range(24):
        write_wav(tmp_path / "many" / f"{number}.wav", speechlike(1.0 + 0.037 * number, seed=number))
    return AudioDataset.from_dir(tmp_path / "many")


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.mem_get_info()[1])
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_filter_bank_of_a_batch_is_torchaudio_s() -> None:
    waveforms = [torch.from_numpy(speechlike(seconds, seed=5)) for seconds in (1.0, 2.345, 0.03)]
    on_gpu = fbanks([one.cuda() for one in waveforms], FbankSettings(), at_once=True)
    for made, waveform in zip(on_gpu, waveforms, strict=True):
        expected = kaldi.fbank(
            waveform.unsqueeze(0) * 32768, num_mel_bins=80, window_type="hamming", sample_frequency=16_000
        )
        assert (made.cpu() - (expected - expected.mean(dim=0))).abs().max() < 1e-3


@pytest.mark.parametrize(("architecture", "module", "args"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize(("precision", "furthest", "least"), [("fp32", 1e-4, 0.999999), ("bf16", 0.1, 0.9999)])
def test_ragged_batches_equal_the_reference(
    tmp_path: Path,
    many: AudioDataset,
    architecture: str,
    module: str,
    args: dict[str, object],
    precision: str,
    furthest: float,
    least: float,
) -> None:
    folder = write_checkpoint(tmp_path / "c", architecture, args)
    reference = Reference(folder, module)
    model = WespeakerModel("", "avg_model.pt", model_dir=folder, device="cuda", precision=precision)
    pairs = model.extract_embeddings(many, False, DataConfig(batch_size=7, num_workers=2))
    assert len(pairs) == 24 and model.takes_ragged_batches
    for id_, ours in pairs:
        theirs = reference.embed(many.root_dir / id_)
        assert relative_difference(ours, theirs) < furthest
        assert cosine(ours, theirs) > least


def test_too_little_memory_halves_batches_and_loses_nothing(
    tmp_path: Path, little_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(32):
        write_wav(tmp_path / "long" / f"{number}.wav", speechlike(10.0, seed=number))
    model = WespeakerModel(
        "", "avg_model.pt", model_dir=write_checkpoint(tmp_path / "c", "ResNet34", STATISTICS), device="cuda"
    )
    settings = DataConfig(batch_size=32, max_batch_seconds=10_000, num_workers=0)
    assert len(model.extract_embeddings(AudioDataset.from_dir(tmp_path / "long"), False, settings)) == 32
    assert "out of memory" in caplog.text
