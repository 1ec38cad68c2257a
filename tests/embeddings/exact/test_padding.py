"""Batches of different lengths: each utterance as if it were alone, whatever the padding holds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn
from untrained_checkpoint import seeded_network

from balr.embeddings.architectures import run_network
from balr.embeddings.exact.attention import attend_in_blocks
from balr.embeddings.exact.padding import RaggedNetwork
from balr.embeddings.exact.verdicts import Verdicts

LENGTHS = (123, 57, 88, 57, 131)

STATISTICS = {"feat_dim": 80, "pooling_func": "TSTP"}
ATTENTIVE = {"feat_dim": 80, "pooling_func": "ASTP"}
QUICK: dict[str, dict[str, Any]] = {
    "ResNet18": STATISTICS,
    "ECAPA_TDNN_c512": ATTENTIVE,
    "CAMPPlus": TINY,
    "SimAM_ResNet34_ASP": {"in_planes": 16},
    "ReDimNetB0": {"feat_dim": 60, "pooling_func": "ASTP"},
    "ReDimNet2B0": {"feat_dim": 72},
    "XVEC": STATISTICS,
    "XI_VEC_XVEC": {"feat_dim": 80},
    "REPVGG_TINY_A0": STATISTICS,
}
SLOW: dict[str, dict[str, Any]] = {
    **{f"ResNet{depth}": STATISTICS for depth in (34, 50, 101, 152, 221, 293)},
    "ECAPA_TDNN_GLOB_c512": ATTENTIVE,
    "ECAPA_TDNN_c1024": ATTENTIVE,
    "ECAPA_TDNN_GLOB_c1024": ATTENTIVE,
    **{f"Gemini_DF_ResNet{depth}": STATISTICS for depth in (60, 114, 183, 237)},
    "SimAM_ResNet100_ASP": {},
    **{f"ERes2Net34_{size}": STATISTICS for size in ("Base", "Large", "aug")},
    **{f"Res2Net34_{size}": STATISTICS for size in ("Base", "Large")},
    **{f"ReDimNetB{size}": {"feat_dim": 72, "pooling_func": "ASTP"} for size in range(1, 7)},
    **{f"ReDimNet2B{size}": {"feat_dim": 72} for size in range(1, 7)},
    "XI_VEC_ECAPA_TDNN_c512": {"feat_dim": 80},
    "REPVGG_D2SE": STATISTICS,
    "REPVGG_RSBB_A0": STATISTICS,
}
CASES = [*QUICK.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items())]
POOLINGS = ("ASTP", "MHASTP", "MQMHASTP", "TAP", "TSDP")


def network_and_features(architecture: str, args: dict[str, Any]) -> tuple[RaggedNetwork, list[torch.Tensor]]:
    network = seeded_network(architecture, {**args, "embed_dim": 24}, {}, 3)
    mels = args.get("feat_dim", 80)
    generator = torch.Generator().manual_seed(4)
    features = [torch.randn(n, mels, generator=generator) for n in LENGTHS]
    with torch.inference_mode():
        attend_in_blocks(network, features[0].unsqueeze(0), verdicts=Verdicts())
    return RaggedNetwork(network), features


def alone(network: nn.Module, features: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([run_network(network, one.unsqueeze(0)) for one in features])


@pytest.mark.parametrize(("architecture", "args"), CASES, ids=lambda case: case if isinstance(case, str) else "")
@torch.inference_mode()
def test_a_batch_of_different_lengths_gives_each_embedding_as_alone(architecture: str, args: dict[str, Any]) -> None:
    ragged, features = network_and_features(architecture, args)
    expected = alone(ragged.network, features)
    for batch in (slice(None), slice(2), slice(1, 4, 2)):  # all; two; two of one length
        made = ragged(features[batch])
        difference = (made - expected[batch]).abs().amax(dim=1) / expected[batch].abs().amax(dim=1)
        assert difference.max() < 1e-5
    assert torch.equal(alone(ragged.network, features), expected)  # and nothing of a batch stays in the network


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.inference_mode()
def test_every_pooling_sees_an_utterance_s_own_frames_alone(pooling: str) -> None:
    ragged, features = network_and_features("ResNet18", {"feat_dim": 80, "pooling_func": pooling})
    expected = alone(ragged.network, features)
    assert (ragged(features) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("architecture", ["ResNet18", "CAMPPlus", "XVEC"])
@torch.inference_mode()
def test_what_the_padding_holds_never_reaches_an_embedding(architecture: str) -> None:
    ragged, features = network_and_features(architecture, STATISTICS)
    padded = torch.full((len(LENGTHS), 140, 80), float("nan"))
    for row, one in zip(padded, features, strict=True):
        row[: len(one)] = one
    made, expected = ragged.run_padded(padded, LENGTHS), alone(ragged.network, features)
    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.inference_mode()
def test_zeros_at_the_end_do_change_an_embedding_without_all_this() -> None:
    ragged, features = network_and_features("ResNet18", STATISTICS)
    longer = torch.cat([features[1], torch.zeros(40, 80)])
    expected = alone(ragged.network, [features[1]])
    assert (alone(ragged.network, [longer]) - expected).abs().max() > 1e-2 * expected.abs().max()


class _Leaky(nn.Module):
    """A network with a layer over all time that is in no list."""

    def __init__(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(80, 8, 3, padding=1)
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(self.conv(features.transpose(1, 2))).mean(dim=2)


@torch.inference_mode()
def test_the_trial_finds_a_layer_that_lengths_do_not_reach() -> None:
    torch.manual_seed(0)
    leaky = RaggedNetwork(_Leaky(lambda x: x - x.mean(dim=2, keepdim=True)))
    assert leaky.difference_from_alone(80, torch.device("cpu")) > 1e-2
    untracked = _Leaky(lambda x: nn.functional.conv1d(x[..., ::2], torch.ones(8, 8, 1)))
    untracked.second = nn.Conv1d(8, 8, 3)
    untracked.layer = lambda x: untracked.second(x[..., ::2])
    assert RaggedNetwork(untracked).difference_from_alone(80, torch.device("cpu")) == float("inf")


@torch.inference_mode()
def test_the_trial_passes_a_network_whose_lengths_are_followed() -> None:
    ragged, _ = network_and_features("ResNet18", STATISTICS)
    assert ragged.difference_from_alone(80, torch.device("cpu")) < 1e-5


@torch.inference_mode()
def test_a_trial_without_memory_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ragged, verdicts = network_and_features("XVEC", STATISTICS)[0], Verdicts()

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(ragged, "run_padded", full)
        with pytest.raises(torch.OutOfMemoryError):
            ragged.is_exact(80, torch.device("cpu"), verdicts=verdicts)
    assert ragged.is_exact(80, torch.device("cpu"), verdicts=verdicts)
