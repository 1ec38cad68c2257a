"""Convolutions of kernel size 1 in oneDNN: the same embeddings, the layers' own weights, and a way back."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from untrained_checkpoint import seeded_network

from balr.embeddings.architectures import run_network
from balr.embeddings.exact.pointwise import run_pointwise_in_onednn
from balr.embeddings.exact.verdicts import Verdicts

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

NETWORKS = {
    "ECAPA_TDNN_c512": {"feat_dim": 80, "embed_dim": 192, "pooling_func": "ASTP"},
    "ResNet50": {"feat_dim": 80, "embed_dim": 256, "pooling_func": "TSTP"},
    "CAMPPlus": {"feat_dim": 80, "embed_dim": 512, "pooling_func": "TSTP"},
}
EXAMPLE = torch.randn(1, 70, 80, generator=torch.Generator().manual_seed(1))


def changed_layers(network: nn.Module) -> list[nn.Module]:
    return [
        layer for layer in network.modules() if isinstance(layer, nn.Conv1d | nn.Conv2d) and "forward" in vars(layer)
    ]


@pytest.mark.parametrize("architecture", NETWORKS)
@torch.inference_mode()
def test_the_embeddings_stay_what_they_were(architecture: str) -> None:
    network = seeded_network(architecture, NETWORKS[architecture], {}, 0)
    features = torch.randn(2, 211, 80, generator=torch.Generator().manual_seed(2))
    expected = run_network(network, features)
    run_pointwise_in_onednn(network, EXAMPLE, verdicts=Verdicts())
    assert changed_layers(network)
    assert all(set(layer.kernel_size) == {1} for layer in changed_layers(network))
    assert (run_network(network, features) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.inference_mode()
def test_a_copy_of_the_network_has_weights_of_its_own() -> None:
    network = seeded_network("ECAPA_TDNN_c512", NETWORKS["ECAPA_TDNN_c512"], {}, 0)
    run_pointwise_in_onednn(network, EXAMPLE, verdicts=Verdicts())
    copy = deepcopy(network)
    expected = run_network(copy, EXAMPLE)
    for layer in changed_layers(network):
        layer.weight.zero_()
    assert torch.equal(run_network(copy, EXAMPLE), expected)
    assert not torch.equal(run_network(network, EXAMPLE), expected)


@torch.inference_mode()
def test_a_library_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = seeded_network("ECAPA_TDNN_c512", NETWORKS["ECAPA_TDNN_c512"], {}, 0)
    expected = run_network(network, EXAMPLE)
    exact = torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *arguments: exact(*arguments) * 1.001)
    run_pointwise_in_onednn(network, EXAMPLE, verdicts=Verdicts())
    assert not changed_layers(network)
    assert torch.equal(run_network(network, EXAMPLE), expected)
