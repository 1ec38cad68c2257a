"""Reduced precision: a trunk in 16 bits, near the fp32 embedding, only where the device is made for it."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, needs_bf16, speechlike
from reference import cosine
from torch import nn
from untrained_checkpoint import seeded_network, write_checkpoint

from balr.embeddings.architectures import run_network
from balr.embeddings.exact.precision import LEAST_COSINE, checked_precision, lower_trunk
from balr.embeddings.exact.probe import shortest_near
from balr.embeddings.fbank import FbankSettings, fbank
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import ConfigError

CPU = torch.device("cpu")

STATISTICS = {"feat_dim": 80, "pooling_func": "TSTP"}
CASES = (
    ("ResNet34", STATISTICS, 0.99999),
    ("CAMPPlus", STATISTICS, 0.9999),
    ("ECAPA_TDNN_GLOB_c512", {"feat_dim": 80, "pooling_func": "ASTP"}, 0.9999),
    ("SimAM_ResNet34_ASP", {"in_planes": 16}, 0.9999),
    ("ReDimNetB0", {"feat_dim": 60, "pooling_func": "ASTP"}, 0.9999),
)


SIMAM = {"in_planes": 16, "embed_dim": 64}


def speech_that_breaks_off(seconds: float, *, seed: int = 0) -> torch.Tensor:
    """Make speech that jumps in level and ends in digital silence, as a file cut out of another may."""
    waveform = torch.from_numpy(speechlike(seconds, seed=seed))
    waveform[: waveform.numel() // 3] *= 0.003
    waveform[waveform.numel() * 3 // 4 :] = 0.0
    return waveform


@pytest.fixture(scope="module")
def centred_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SimAM whose batch norms lean to the statistics of speech: what speech has in common, they take out.

    What is left is small, so that rounding shows.
    """
    folder = write_checkpoint(tmp_path_factory.mktemp("centred") / "c", "SimAM_ResNet34_ASP", SIMAM)
    network = seeded_network("SimAM_ResNet34_ASP", SIMAM, {}, 0)
    norms = [one for one in network.modules() if isinstance(one, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_parameters()
        norm.momentum = None  # the mean of all batches
        norm.train()
    speech = [fbank(torch.from_numpy(speechlike(1.0, seed=seed)), FbankSettings()) for seed in range(16)]
    with torch.inference_mode():
        network(torch.stack(speech))
        for norm in norms:
            norm.running_mean *= 0.75
            norm.running_var.mul_(0.75).add_(0.25)
    torch.save(network.state_dict(), folder / "avg_model.pt")
    return folder


@pytest.fixture(scope="module")
def centred(centred_checkpoint: Path) -> tuple[WespeakerModel, WespeakerModel]:
    """Return that network in fp32 and in bf16."""
    fp32, bf16 = (
        WespeakerModel("", "avg_model.pt", model_dir=centred_checkpoint, precision=precision)
        for precision in ("fp32", "bf16")
    )
    return fp32, bf16


@needs_bf16
def test_audio_too_short_for_16_bits_is_embedded_in_fp32(centred: tuple[WespeakerModel, WespeakerModel]) -> None:
    fp32, bf16 = centred
    limit = bf16.describe()["shortest_in_16_bits_seconds"]
    assert fp32.describe()["shortest_in_16_bits_seconds"] is None and 0.1 < limit < 3.0
    lowest_in_16_bits = 1.0
    for seconds in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 2 * limit):
        clips = [speech_that_breaks_off(seconds, seed=seed) for seed in range(4)]
        for clip in clips:
            expected = fp32.embed([clip])[0].numpy()
            assert cosine(bf16.embed([clip])[0].numpy(), expected) > LEAST_COSINE
            with torch.inference_mode():
                (features,) = fp32._frontend.compute([clip])
                made = run_network(bf16._network, features.unsqueeze(0))[0].numpy()
            lowest_in_16_bits = min(lowest_in_16_bits, cosine(made, expected))
    assert lowest_in_16_bits < LEAST_COSINE  # what this is for


@needs_bf16
def test_short_and_long_audio_in_one_batch_is_embedded_as_alone(centred: tuple[WespeakerModel, WespeakerModel]) -> None:
    fp32, bf16 = centred
    limit = bf16.describe()["shortest_in_16_bits_seconds"]
    lengths = (3 * limit, 0.05, 0.2, 2 * limit, 0.2, 3.1 * limit)
    waveforms = [speech_that_breaks_off(seconds, seed=seed) for seed, seconds in enumerate(lengths)]
    for settings in ({}, {"chunk_seconds": 0.15}):
        together = bf16.embed(waveforms, **settings)
        for seconds, waveform, made in zip(lengths, waveforms, together, strict=True):
            alone = (fp32 if seconds < limit else bf16).embed([waveform])[0]
            assert (made - alone).abs().max() < (1e-5 if seconds < limit else 2e-2) * alone.abs().max()


@needs_bf16
def test_no_fp32_copy_is_kept_of_a_network_that_16_bits_suit_at_any_length(tiny_campplus: Path) -> None:
    model = WespeakerModel("", "avg_model.pt", model_dir=tiny_campplus, precision="bf16")
    assert model.describe()["shortest_in_16_bits_seconds"] == round(model.shortest_seconds, 3)
    assert model._forward_fp32 is model._forward


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


@torch.inference_mode()
def test_a_network_that_16_bits_would_move_is_refused() -> None:
    network = seeded_network("XVEC", {"feat_dim": 80, "hid_dim": 16, "stats_dim": 16, "embed_dim": 8}, {}, 0)
    exact = deepcopy(network)
    lower_trunk(network, torch.bfloat16)
    assert next(network.parameters()).dtype == torch.bfloat16 and network.seg_1.weight.dtype == torch.float32

    def embed(network: nn.Module, waveforms: list[torch.Tensor]) -> torch.Tensor:
        return run_network(network, torch.stack(waveforms).unfold(1, 80, 80))

    assert shortest_near(partial(embed, network), partial(embed, exact), 16_000, shortest=0.1) < 2.8
    layer = network.seg_2.forward
    network.seg_2.forward = lambda x: layer(x.flip(1))
    with pytest.raises(ConfigError, match="precision: the cosine of 16-bit embeddings of noise to fp32 is"):
        shortest_near(partial(embed, network), partial(embed, exact), 16_000, shortest=0.1)


def test_fp16_is_refused_for_sums_that_it_cannot_hold() -> None:
    network = seeded_network("SimAM_ResNet34_ASP", {"in_planes": 16, "embed_dim": 8}, {}, 0)
    with pytest.raises(ConfigError, match="SimAM sums squares over all frames"):
        lower_trunk(network, torch.float16)


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
    assert "precision fp32 there, bf16 here" in capsys.readouterr().err
    assert balr(f"input={corpus}", "precision=bf16") == 0
    (folder,) = (tmp_path / "outputs" / "embeddings" / "corpus").iterdir()
    assert folder.name.endswith("+precision-bf16")
