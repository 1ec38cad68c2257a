"""Attention in blocks: the numbers of WeSpeaker's own layer, without a matrix of all frames by all frames."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from untrained_checkpoint import seeded_network

from balr.embeddings.architectures import run_network
from balr.embeddings.exact.attention import attend_in_blocks
from balr.embeddings.exact.verdicts import Verdicts

ARGS = {"feat_dim": 60, "embed_dim": 24, "pooling_func": "ASTP"}


class _Shapes(TorchDispatchMode):
    """Note the shape of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        outputs = made if isinstance(made, tuple | list) else (made,)
        self.shapes += [tuple(output.shape) for output in outputs if isinstance(output, torch.Tensor)]
        return made


@torch.inference_mode()
def test_attention_in_blocks_gives_the_same_embedding_for_any_length() -> None:
    network = seeded_network("ReDimNetB0", ARGS, {}, 1)
    features = [torch.randn(1, frames, 60, generator=torch.Generator().manual_seed(frames)) for frames in (40, 301)]
    expected = [run_network(network, one) for one in features]
    attend_in_blocks(network, features[0], verdicts=Verdicts())
    for one, before in zip(features, expected, strict=True):
        assert (run_network(network, one) - before).abs().max() < 1e-5 * before.abs().max()


@torch.inference_mode()
def test_no_tensor_grows_with_the_square_of_the_length() -> None:
    network = seeded_network("ReDimNetB0", ARGS, {}, 1)
    attend_in_blocks(network, torch.randn(1, 60, 60), verdicts=Verdicts())
    with _Shapes() as seen:
        run_network(network, torch.randn(1, 307, 60))
    assert any(307 in shape for shape in seen.shapes)
    assert not any(shape.count(307) > 1 for shape in seen.shapes)


@torch.inference_mode()
def test_a_layer_that_would_compute_something_else_is_left_as_it_was() -> None:
    network = seeded_network("ReDimNetB0", ARGS, {}, 1)
    for layer in [module for module in network.modules() if type(module).__name__ == "MultiHeadAttention"]:
        whole = type(layer)
        half_more = {"forward": lambda self, hidden, whole=whole: whole.forward(self, hidden) * 1.5}
        layer.__class__ = type("MultiHeadAttention", (whole,), half_more)
    example = torch.randn(1, 60, 60)
    before = run_network(network, example)
    attend_in_blocks(network, example, verdicts=Verdicts())
    assert torch.equal(run_network(network, example), before)
