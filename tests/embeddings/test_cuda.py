"""On an NVIDIA GPU: the same embeddings, in batches, in 16 bits, and with too little memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import speechlike, write_wav
from reference import Reference, cosine, relative_difference
from torchaudio.compliance import kaldi
from untrained_checkpoint import write_checkpoint

from balr.config import DataConfig
from balr.data.dataset import AudioDataset
from balr.embeddings.devices import select_device
from balr.embeddings.fbank import FbankSettings, fbanks
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]

STATISTICS = {"feat_dim": 80, "embed_dim": 64, "pooling_func": "TSTP"}
MEL_72 = {"fbank_args": {"num_mel_bins": 72, "frame_shift": 10, "frame_length": 25, "dither": 1.0}}
TFMEL = {"n_mels": 72, "hop_length": 160, "win_length": 400, "n_fft": 512, "f_min": 20, "f_max": 7600}
TFMEL |= {"do_preemph": True, "norm_signal": True, "eps": 1e-8}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "ResNet34": ("resnet", STATISTICS, None),
    "ResNet50": ("resnet", STATISTICS, None),
    "CAMPPlus": ("campplus", STATISTICS, None),
    "ECAPA_TDNN_GLOB_c512": ("ecapa_tdnn", {**STATISTICS, "pooling_func": "ASTP"}, None),
    "SimAM_ResNet34_ASP": ("samresnet", {"embed_dim": 64}, None),
    "Gemini_DF_ResNet60": ("gemini_dfresnet", STATISTICS, None),
    "ERes2Net34_Base": ("eres2net", STATISTICS, None),
    "ReDimNetB2": ("redimnet", {"feat_dim": 72, "embed_dim": 64, "pooling_func": "ASTP"}, MEL_72),
    "ReDimNet2B0": (
        "redimnet2",
        {"feat_dim": 72, "embed_dim": 64},
        {"frontend": "tfmel", "tfmel_args": TFMEL, "cmvn": False},
    ),
    "XI_VEC_XVEC": ("xi_vector", {"feat_dim": 80, "embed_dim": 64}, None),
}
PRECISIONS = {"fp32": (1e-4, 0.999999), "bf16": (0.1, 0.9999), "fp16": (0.02, 0.99999)}


@dataclass(frozen=True)
class Case:
    """An untrained checkpoint, and WeSpeaker's own embeddings by it, one utterance at a time on the CPU."""

    architecture: str
    folder: Path
    corpus: AudioDataset
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    module, args, dataset_args = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    for number in range(14):
        write_wav(folder / "audio" / f"{number}.wav", speechlike(1.0 + 0.057 * number, seed=number))
    write_checkpoint(folder / "checkpoint", request.param, args, dataset_args=dataset_args)
    reference = Reference(folder / "checkpoint", module)
    corpus = AudioDataset.from_dir(folder / "audio")
    expected = {one.id: reference.embed(Path(str(one.audio))) for one in corpus.utterances}
    return Case(request.param, folder / "checkpoint", corpus, expected)


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.mem_get_info()[1])
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def load(folder: Path, **settings: Any) -> WespeakerModel:
    return WespeakerModel("", "avg_model.pt", model_dir=folder, device="cuda", **settings)


def test_the_filter_bank_of_a_batch_is_torchaudio_s() -> None:
    waveforms = [torch.from_numpy(speechlike(seconds, seed=5)) for seconds in (1.0, 2.345, 0.03)]
    on_gpu = fbanks([one.cuda() for one in waveforms], FbankSettings(), at_once=True)
    for made, waveform in zip(on_gpu, waveforms, strict=True):
        expected = kaldi.fbank(
            waveform.unsqueeze(0) * 32768, num_mel_bins=80, window_type="hamming", sample_frequency=16_000
        )
        assert (made.cpu() - (expected - expected.mean(dim=0))).abs().max() < 1e-3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ragged_batches_equal_the_reference(case: Case, precision: str) -> None:
    if (case.architecture, precision) == ("SimAM_ResNet34_ASP", "fp16"):
        with pytest.raises(ConfigError, match="overflows fp16"):
            load(case.folder, precision=precision)
        return
    model = load(case.folder, precision=precision)
    pairs = model.extract_embeddings(case.corpus, False, DataConfig(batch_size=7, num_workers=2))
    assert len(pairs) == 14 and model.takes_ragged_batches
    furthest, least = PRECISIONS[precision]
    for id_, ours in pairs:
        assert relative_difference(ours, case.expected[id_]) < furthest
        assert cosine(ours, case.expected[id_]) > least


def test_one_file_and_decoding_in_this_process_give_the_reference_too(case: Case) -> None:
    model = load(case.folder)
    in_process = model.extract_embeddings(case.corpus, False, DataConfig(num_workers=0))
    for id_, ours in [*in_process, ("0", model.embed_file(case.corpus.root_dir / "0.wav"))]:
        theirs = case.expected.get(id_, case.expected.get("0.wav"))
        assert theirs is not None and relative_difference(ours, theirs) < 1e-4


def test_the_device_has_a_number_which_threads_need() -> None:
    assert str(select_device("cuda")) == str(select_device("auto")) == "cuda:0"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resnet_runs_in_fused_convolutions(tmp_path: Path, precision: str) -> None:
    model = load(write_checkpoint(tmp_path / "c", "ResNet34", STATISTICS), precision=precision)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        model.embed([torch.from_numpy(speechlike(2.0))])
    calls = {event.key: event.count for event in profile.key_averages()}
    blocks = 13 if precision == "fp32" else 16  # the three widest are left as they are in fp32
    assert calls["aten::cudnn_convolution_add_relu"] == blocks
    assert calls["aten::cudnn_convolution_relu"] == blocks + 1  # and the first layer of all


def test_too_little_memory_halves_batches_and_loses_nothing(
    tmp_path: Path, little_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(32):
        write_wav(tmp_path / "long" / f"{number}.wav", speechlike(10.0, seed=number))
    model = load(write_checkpoint(tmp_path / "c", "ResNet34", STATISTICS))
    settings = DataConfig(batch_size=32, max_batch_seconds=10_000, num_workers=0)
    assert len(model.extract_embeddings(AudioDataset.from_dir(tmp_path / "long"), False, settings)) == 32
    assert "out of memory" in caplog.text
