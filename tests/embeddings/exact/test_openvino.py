"""OpenVINO as the engine: the embeddings of torch, from any number of threads; refused where that is not so."""

import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command, needs_bf16, rows, speechlike, write_wav
from reference import Reference, cosine, relative_difference
from untrained_checkpoint import seeded_network, write_checkpoint

from balr.config import DataConfig
from balr.data.dataset import AudioDataset
from balr.embeddings.architectures import build_network
from balr.embeddings.exact.openvino import CompiledNetwork
from balr.embeddings.exact.verdicts import Verdicts
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError

SLOW = (
    ("ResNet34", {"feat_dim": 80, "pooling_func": "TSTP"}),
    ("ECAPA_TDNN_GLOB_c512", {"feat_dim": 80, "pooling_func": "ASTP"}),
    ("SimAM_ResNet34_ASP", {"in_planes": 16}),
    ("ReDimNetB0", {"feat_dim": 60, "pooling_func": "ASTP"}),
    ("ReDimNet2B0", {"feat_dim": 72}),
)


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    """Give OpenVINO two: with one alone it moves CAM++ by some percent, and is refused."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> WespeakerModel:
    return WespeakerModel("", "avg_model.pt", model_dir=tiny_checkpoint, engine="openvino")


def test_embeddings_equal_the_reference_in_batches_and_alone(
    model: WespeakerModel, tiny_checkpoint: Path, corpus: Path
) -> None:
    reference = Reference(tiny_checkpoint, "tdnn")
    for number, seconds in enumerate((2.6, 2.6, 3.1)):
        write_wav(corpus / f"long{number}.wav", speechlike(seconds, seed=10 + number))
    for size in (1, 8):
        pairs = model.extract_embeddings(AudioDataset.from_dir(corpus), False, DataConfig(batch_size=size))
        assert len(pairs) == 9
        for id_, ours in pairs:
            theirs = reference.embed(corpus / id_)
            assert relative_difference(ours, theirs) < 1e-4 and cosine(ours, theirs) > 0.999999


def test_audio_of_up_to_three_times_chunk_seconds_is_not_cut_as_chunks_run_in_torch(
    model: WespeakerModel, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = WespeakerModel("", "avg_model.pt", model_dir=tiny_checkpoint)
    chunks: list[float] = []
    monkeypatch.setattr(model, "on_progress", chunks.append)
    for seconds, is_cut in ((2.9, False), (3.1, True)):
        waveform = torch.from_numpy(speechlike(seconds, seed=4))
        expected, made = plain.embed([waveform]), model.embed([waveform], chunk_seconds=1.0)
        assert bool(chunks) is is_cut
        assert (made - expected).abs().max() < 1e-5 * expected.abs().max()


# A segment of the pooling in CAM++ is 100 frames: one to three segments, and their bounds.
@pytest.mark.slow
def test_short_clips_of_campplus_run_in_the_engine_too(tiny_campplus: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half as many frames are pooled as there are in the input."""
    caplog.set_level("DEBUG", "balr.embeddings.exact.openvino")
    model = WespeakerModel("", "avg_model.pt", model_dir=tiny_campplus, engine="openvino")
    plain = WespeakerModel("", "avg_model.pt", model_dir=tiny_campplus)
    for seconds in (0.3, 0.99, 1.0, 1.01, 1.5, 1.99, 2.0, 2.01, 4.0):
        waveform = torch.from_numpy(speechlike(seconds, seed=3))
        expected, made = plain.embed([waveform]), model.embed([waveform])
        assert (made - expected).abs().max() < 1e-5 * expected.abs().max(), seconds
    assert model.engine == "openvino" and "runs in torch" not in caplog.text


@torch.inference_mode()
def test_a_layer_of_campplus_gives_the_same_for_any_number_of_segments() -> None:
    network = seeded_network("CAMPPlus", TINY, {}, 0)
    layer = next(module for module in network.modules() if type(module).__name__ == "CAMLayer").eval()
    mels = layer.linear_local.in_channels
    pooled = Pooled(layer)
    compiled = CompiledNetwork(pooled, mels=mels, dtype=torch.float32, requests=1, verdicts=Verdicts())
    for frames in (20, 99, 100, 101, 199, 200, 201, 400):
        features = torch.randn(1, frames, mels)
        expected = pooled(features)
        assert (compiled._infer(features) - expected).abs().max() < 1e-5 * expected.abs().max(), frames


class Pooled(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features.transpose(1, 2)).std(2)


class Wide(torch.nn.Module):
    """A convolution of kernel size 1 that reads more channels than are convolved at once, as ECAPA's last one does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv1d(80, 5000, 3)
        self.wide = torch.nn.Conv1d(5000, 16, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.wide(self.layer(features.transpose(1, 2)).relu()).mean(2)


@torch.inference_mode()
def test_a_convolution_over_many_channels_gives_the_same_in_parts() -> None:
    torch.manual_seed(0)
    network = Wide().eval()
    compiled = CompiledNetwork(network, mels=80, dtype=torch.float32, requests=1, verdicts=Verdicts())
    for frames in (60, 200):
        features = torch.randn(1, frames, 80)
        expected = network(features)
        assert (compiled._infer(features) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert "forward" not in vars(network.wide)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "args"), SLOW, ids=[case[0] for case in SLOW])
def test_architectures_run_with_the_same_embeddings(tmp_path: Path, architecture: str, args: dict[str, Any]) -> None:
    dataset_args = {"fbank_args": {"num_mel_bins": args.get("feat_dim", 80)}}
    folder = write_checkpoint(tmp_path / "c", architecture, {**args, "embed_dim": 24}, dataset_args=dataset_args)
    waveforms = [torch.from_numpy(speechlike(seconds, seed=1)) for seconds in (1.0, 2.2, 1.0)]
    engines = [WespeakerModel("", "avg_model.pt", model_dir=folder, engine=name) for name in ("torch", "openvino")]
    expected, made = (engine.embed(waveforms) for engine in engines)
    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()


@needs_bf16
@pytest.mark.slow
def test_audio_too_short_for_16_bits_is_left_to_torch_in_fp32(tmp_path: Path) -> None:
    args = {"in_planes": 16, "embed_dim": 64}
    folder = write_checkpoint(tmp_path / "c", "SimAM_ResNet34_ASP", args)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(build_network("SimAM_ResNet34_ASP", args).state_dict(), folder / "avg_model.pt")
    fp32 = WespeakerModel("", "avg_model.pt", model_dir=folder)
    bf16 = WespeakerModel("", "avg_model.pt", model_dir=folder, engine="openvino", precision="bf16")
    assert bf16._compiled is not None
    assert bf16.describe()["shortest_in_16_bits_seconds"] > 0.1
    lowest_in_16_bits = 1.0
    for seconds in (0.06, 0.1, 0.13, 0.2, 1.0):
        waveforms = [torch.from_numpy(speechlike(seconds, seed=seed)) for seed in range(4)]
        for waveform in waveforms:
            waveform[: waveform.numel() // 3] *= 0.003
        features = torch.stack(fp32._frontend.compute(waveforms))
        for each in zip(fp32.embed(waveforms), bf16.embed(waveforms), bf16._compiled(features), strict=True):
            expected, made, in_16_bits = (one.numpy() for one in each)
            assert cosine(made, expected) > 0.9999
            lowest_in_16_bits = min(lowest_in_16_bits, cosine(in_16_bits, expected))
    assert lowest_in_16_bits < 0.9999  # what this is for


def test_threads_do_not_meet_in_the_engine(model: WespeakerModel) -> None:
    waveforms = [torch.from_numpy(speechlike(1.6 + 0.2 * n, seed=n)) for n in range(8)]
    alone = [model.embed([waveform]) for waveform in waveforms]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda waveform: model.embed([waveform]), waveforms * 4))
    for number, one in enumerate(together):  # rounding goes by the threads that a thread has
        assert (one - alone[number % 8]).abs().max() < 1e-5 * one.abs().max()


@pytest.mark.slow
def test_a_run_records_its_engine_and_does_not_mix_it_with_another(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out", "embeddings.model.engine=openvino") == 0
    assert len(rows(tmp_path / "out" / "metadata.csv")) == 6
    (run,) = json.loads((tmp_path / "out" / "run.json").read_text())["runs"]
    assert run["engine"] == "openvino"
    assert balr(f"input={corpus}", "save_dir=out", "embeddings.model.engine=torch") == 2
    assert "engine openvino there, torch here" in capsys.readouterr().err


def test_a_network_is_compiled_where_no_temporary_file_can_be_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    assert WespeakerModel("", "avg_model.pt", model_dir=tiny_checkpoint, engine="openvino").engine == "openvino"


def test_a_network_that_the_engine_would_change_is_refused() -> None:
    network = seeded_network("XVEC", {"feat_dim": 80, "embed_dim": 8, "pooling_func": "TSTP"}, {}, 0)
    moving = torch.nn.Sequential(network).eval()
    moving.forward = lambda features: (features, network(features)[-1] * (1.5 if torch.jit.is_tracing() else 1.0))
    with pytest.raises(ConfigError, match="would move embeddings by 5"):
        CompiledNetwork(moving, mels=80, dtype=torch.float32, requests=1, verdicts=Verdicts())


def test_a_network_that_the_engine_refuses_at_every_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = seeded_network("XVEC", {"feat_dim": 80, "embed_dim": 8, "pooling_func": "TSTP"}, {}, 0)

    def refuse(request: object, features: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("openvino.InferRequest.infer", refuse)
    with pytest.raises(ConfigError, match="refuses features of any length"):
        CompiledNetwork(network, mels=80, dtype=torch.float32, requests=1, verdicts=Verdicts())


def test_auto_does_without_an_engine_that_does_not_import_and_others_are_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert WespeakerModel("", "avg_model.pt", model_dir=tiny_checkpoint, engine="auto").engine == "torch"
    with pytest.raises(ConfigError, match="must be auto, torch or openvino"):
        WespeakerModel("", "avg_model.pt", model_dir=tiny_checkpoint, engine="onnx")
