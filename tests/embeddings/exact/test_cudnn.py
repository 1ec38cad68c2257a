"""The same ResNet in cuDNN's fused convolutions, and the same convolution as a matrix product."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from untrained_checkpoint import seeded_network

from balr.embeddings.architectures import run_network
from balr.embeddings.exact.cudnn import avoid_fft, convolve_by_product, fuse_relu
from balr.embeddings.exact.folding import fold
from balr.embeddings.exact.padding import RaggedNetwork
from balr.embeddings.exact.verdicts import Verdicts

Pair = Sequence[int]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give torch the two functions of cuDNN on a CPU, and return a list that grows by the channels of each call."""
    found: list[int] = []

    def relu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: Pair, *rest: object) -> torch.Tensor:
        found.append(len(weight))
        return nn.functional.conv2d(x, weight, bias, stride, *rest).relu()

    def add_relu(
        x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, alpha: float, bias: torch.Tensor, *rest: object
    ) -> torch.Tensor:
        found.append(len(weight))
        return (nn.functional.conv2d(x, weight, bias, *rest) + alpha * z).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    return found


def resnet(architecture: str = "ResNet18") -> nn.Module:
    return seeded_network(architecture, {"feat_dim": 80, "embed_dim": 16, "pooling_func": "TSTP"}, {}, 0)


@pytest.mark.parametrize(
    ("architecture", "dtype", "convolutions"),
    [
        ("ResNet18", torch.bfloat16, 1 + 2 * 8),
        ("ResNet18", torch.float32, 1 + 2 * 6),  # without the widest
        ("ResNet50", torch.float16, 1 + 3 * 16),
    ],
)
@torch.no_grad()
def test_a_resnet_in_fused_convolutions_gives_the_same_embeddings(
    architecture: str, dtype: torch.dtype, convolutions: int, calls: list[int]
) -> None:
    network = resnet(architecture)
    features = [torch.randn(frames, 80) for frames in (90, 70)]
    expected = torch.cat([run_network(network, one.unsqueeze(0)) for one in features])
    fold(network, features[0].unsqueeze(0), verdicts=Verdicts())
    fuse_relu(network, features[0].unsqueeze(0), dtype=dtype, verdicts=Verdicts())
    calls.clear()
    together = RaggedNetwork(network)(features)
    assert len(calls) == convolutions
    assert (together - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_blocks_whose_embedding_would_change_are_left_as_they_were(
    calls: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = resnet()
    example = torch.randn(1, 90, 80)
    fold(network, example, verdicts=Verdicts())
    expected = run_network(network, example)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", lambda x, weight, z, *_: z.relu())
    fuse_relu(network, example, dtype=torch.bfloat16, verdicts=Verdicts())
    assert "no fused convolutions" in caplog.text and torch.equal(run_network(network, example), expected)


@torch.no_grad()
def test_a_device_without_such_kernels_runs_the_blocks_as_they_were() -> None:
    network = resnet()
    example = torch.randn(1, 90, 80)
    fold(network, example, verdicts=Verdicts())
    expected = run_network(network, example)
    fuse_relu(network, example, dtype=torch.bfloat16, verdicts=Verdicts())  # this torch has them for CUDA alone
    assert torch.equal(run_network(network, example), expected)


def test_other_networks_and_batch_norms_that_are_not_folded_are_left_alone(calls: list[int]) -> None:
    simam = seeded_network("SimAM_ResNet34_ASP", {"in_planes": 16, "embed_dim": 16}, {}, 0)
    for network in (resnet(), simam):
        fuse_relu(network, torch.randn(1, 90, 80), dtype=torch.bfloat16, verdicts=Verdicts())
    assert not calls


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_convolution_as_a_matrix_product_is_the_same(bias: bool) -> None:
    conv, inputs = nn.Conv2d(160, 24, 3, padding=1, bias=bias), torch.randn(3, 160, 10, 23)
    assert torch.allclose(convolve_by_product(conv, inputs), conv(inputs), atol=1e-5)


@pytest.mark.parametrize("takes_longer", [True, False])
@torch.no_grad()
def test_wide_convolutions_become_products_only_where_cudnn_takes_far_longer(
    takes_longer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, example = resnet(), torch.randn(1, 90, 80)
    expected, verdicts = run_network(network, example), Verdicts()
    verdicts.of("fft", lambda: takes_longer)
    avoid_fft(network, example, dtype=torch.float32, verdicts=verdicts)
    unfold, unfolded = nn.functional.unfold, []
    monkeypatch.setattr(nn.functional, "unfold", lambda *a, **k: unfolded.append(a) or unfold(*a, **k))
    made = run_network(network, example)
    assert len(unfolded) == (3 if takes_longer else 0)  # of the four in the two widest blocks, one has a stride
    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_the_trial_of_wide_convolutions_leaves_a_processor_what_it_has() -> None:
    network, example = resnet(), torch.randn(1, 90, 80)
    expected = run_network(network, example)
    avoid_fft(network, example, dtype=torch.float32, verdicts=Verdicts())
    assert torch.equal(run_network(network, example), expected)
