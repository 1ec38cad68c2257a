"""Reduced precision: a trunk in 16 bits, near the fp32 embedding, only where the device is made for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, speechlike
from reference import cosine
from untrained_checkpoint import seeded_network, write_checkpoint

from balr.embeddings.precision import checked_precision, lower_trunk
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError

CPU = torch.device("cpu")
BF16 = any(torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16"))
needs_bf16 = pytest.mark.skipif(not BF16, reason="this processor has no bf16 units")

STATISTICS = {"feat_dim": 80, "pooling_func": "TSTP"}
CASES = (
    ("ResNet34", STATISTICS, 0.99999),
    ("CAMPPlus", STATISTICS, 0.9999),
    ("ECAPA_TDNN_GLOB_c512", {"feat_dim": 80, "pooling_func": "ASTP"}, 0.9999),
    ("SimAM_ResNet34_ASP", {"in_planes": 16}, 0.9999),
    ("ReDimNetB0", {"feat_dim": 60, "pooling_func": "ASTP"}, 0.9999),
)


@needs_bf16
@pytest.mark.parametrize(("architecture", "args", "least"), CASES, ids=[case[0] for case in CASES])
def test_a_bf16_trunk_stays_near_the_fp32_embedding(
    tmp_path: Path, architecture: str, args: dict[str, Any], least: float
) -> None:
    dataset_args = {"fbank_args": {"num_mel_bins": args.get("feat_dim", 80)}}
    folder = write_checkpoint(tmp_path / "c", architecture, {**args, "embed_dim": 64}, dataset_args=dataset_args)
    waveforms = [torch.from_numpy(speechlike(seconds, seed=3)) for seconds in (1.6, 1.1, 1.6)]
    fp32 = WespeakerModel("", "avg_model.pt", model_dir=folder)
    bf16 = WespeakerModel("", "avg_model.pt", model_dir=folder, precision="bf16")
    expected = torch.cat([fp32.embed([waveform]) for waveform in waveforms])
    assert any(parameter.dtype == torch.bfloat16 for parameter in bf16._network.parameters())
    for made in (bf16.embed(waveforms), bf16.embed(waveforms, chunk_seconds=1.0)):
        assert made.dtype == torch.float32
        for ours, theirs in zip(made.numpy(), expected.numpy(), strict=True):
            assert cosine(ours, theirs) > least


@needs_bf16
def test_a_network_that_16_bits_would_move_is_refused() -> None:
    network = seeded_network("ResNet18", {**STATISTICS, "embed_dim": 8}, {}, 0)
    original = network.layer1.forward
    network.layer1.forward = lambda x: original(x) + 300.0 * (x.dtype == torch.bfloat16)
    with pytest.raises(ConfigError, match="precision: the cosine of 16-bit embeddings of noise to fp32 is"):
        lower_trunk(network, torch.bfloat16, torch.randn(1, 100, 80))


def test_fp16_is_refused_for_sums_that_it_cannot_hold() -> None:
    network = seeded_network("SimAM_ResNet34_ASP", {"in_planes": 16, "embed_dim": 8}, {}, 0)
    with pytest.raises(ConfigError, match="SimAM sums squares over all time"):
        lower_trunk(network, torch.float16, torch.randn(1, 100, 80))


def test_a_device_without_the_units_refuses_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked_precision("fp32", CPU) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    with pytest.raises(ConfigError, match="precision=bf16: this processor has no bf16 units"):
        checked_precision("bf16", CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert checked_precision("bf16", CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match="precision=fp16: fp16 is for GPUs"):
        checked_precision("fp16", CPU)
    with pytest.raises(ConfigError, match="precision=int8: must be one of fp32, bf16, fp16"):
        checked_precision("int8", CPU)


@needs_bf16
def test_two_precisions_do_not_meet_in_one_folder(
    balr: Command, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert balr(f"input={corpus}", "save_dir=out") == 0
    assert balr(f"input={corpus}", "save_dir=out", "precision=bf16") == 2
    assert "precision (fp32 there, bf16 here)" in capsys.readouterr().err
    assert balr(f"input={corpus}", "precision=bf16") == 0
    (folder,) = (tmp_path / "outputs" / "embeddings" / "corpus").iterdir()
    assert folder.name.endswith("precision=bf16")
