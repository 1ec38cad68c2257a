"""Folding changes the speed and not the numbers, for every family of architectures."""

import pytest
import torch
from torch import nn
from untrained_checkpoint import seeded_network

from balr.embeddings.exact import folding
from balr.embeddings.exact.folding import fold
from balr.embeddings.exact.verdicts import Verdicts

MODELS = {
    "ResNet18": (80, "TSTP"),
    "CAMPPlus": (80, "TSTP"),
    "ECAPA_TDNN_GLOB_c512": (80, "ASTP"),
    "Gemini_DF_ResNet60": (80, "TSTP"),
    "Res2Net34_Base": (80, "TSTP"),
    "REPVGG_TINY_A0": (80, "TSTP"),
    "XVEC": (80, "TSTP"),
    "ReDimNetB0": (60, "ASTP"),
}
FEWER_NORMS = set(MODELS) - {"ECAPA_TDNN_GLOB_c512", "XVEC"}


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())


def embedding(network: nn.Module, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = network(features)
    return output[-1] if isinstance(output, tuple) else output


@pytest.mark.parametrize("architecture", MODELS)
def test_a_folded_network_gives_the_same_embedding(architecture: str) -> None:
    mels, pooling = MODELS[architecture]
    args = {"feat_dim": mels, "embed_dim": 16, "pooling_func": pooling}
    network = seeded_network(architecture, args, {}, 3).eval()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 211, mels, generator=generator)
    expected, before = embedding(network, features), norms(network)
    fold(network, torch.randn(1, 64, mels, generator=generator), verdicts=Verdicts())
    assert (embedding(network, features) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (norms(network) < before) == (architecture in FEWER_NORMS)


def _random_statistics(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network.eval()


class _ReadTwice(nn.Module):
    """The layer's output is also read past the norm, as CAM++'s dense blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        made = self.layer(given)
        return self.norm(made) + made


class _ChangedBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(given).relu_())


class _RunTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(self.layer(given)))


@pytest.mark.parametrize("kind", [_ReadTwice, _ChangedBetween, _RunTwice])
def test_a_norm_that_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    network = _random_statistics(kind())
    given = torch.randn(5, 4)
    expected = embedding(network, given)
    fold(network, torch.randn(3, 4), verdicts=Verdicts())
    assert norms(network) == 1 and torch.equal(embedding(network, given), expected)


def test_a_linear_layer_and_its_norm_become_one() -> None:
    network = _random_statistics(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    given = torch.randn(5, 4)
    expected = embedding(network, given)
    fold(network, torch.randn(3, 4), verdicts=Verdicts())
    assert norms(network) == 0
    torch.testing.assert_close(embedding(network, given), expected, rtol=1e-5, atol=1e-6)


def test_a_fold_that_would_change_the_output_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _random_statistics(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    given = torch.randn(5, 4)
    expected = embedding(network, given)
    monkeypatch.setattr(folding, "fuse_linear_bn_eval", lambda layer, _: layer)
    fold(network, torch.randn(3, 4), verdicts=Verdicts())
    assert norms(network) == 1 and torch.equal(embedding(network, given), expected)
