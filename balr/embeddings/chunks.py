"""Long utterances in bounded memory: a convolutional trunk runs over overlapping chunks, the pooling over all frames.

Each frame that a chunk contributes has all around it that its convolutions see, so it is the frame of the whole
utterance. Only what the trunk hands to the pooling, a small part of what it holds on the way, is kept for all of it.
A trunk that looks at the whole utterance (squeeze and excitation, attention, context masks) cannot be cut; that is
found by trying.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from balr.embeddings.architectures import run_network

log = logging.getLogger(__name__)

_PROBE_FRAMES = 200
_LARGEST_RELATIVE_DIFFERENCE = 1e-5

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Trunk:
    """Hold a network whose trunk can be cut: frames in for each frame out (stride), and how far it looks (halo)."""

    network: nn.Module
    pooling: nn.Module
    stride: int
    halo: int

    def embed(self, features: torch.Tensor, *, chunk_frames: int) -> torch.Tensor:
        """Embed features `(1, frames, mels)` as the whole network would, the trunk over chunks of about that size."""
        # A chunk much shorter than what lies around it would be mostly work done twice.
        step = max(1, max(chunk_frames, self.halo) // self.stride) * self.stride
        total = features.shape[1]
        kept: torch.Tensor | None = None
        filled = 0
        for start in range(0, total, step):
            first, after = max(0, start - self.halo), start + step
            made = _trunk_output(self.network, self.pooling, features[:, first : after + self.halo])
            skip = (start - first) // self.stride
            made = made[..., skip : None if after >= total else skip + step // self.stride]
            if kept is None:
                kept = made.new_empty(*made.shape[:-1], -(-total // self.stride))
            kept[..., filled : filled + made.shape[-1]] = made
            filled += made.shape[-1]
        assert kept is not None
        # The rest of the network runs as it is, on a few frames whose place the kept ones take before the pooling.
        with _before(self.pooling, lambda _: kept[..., :filled]):
            return run_network(self.network, features[:, :_PROBE_FRAMES])


def cuttable(network: nn.Module, mels: int) -> Trunk | None:
    """Return the network as one whose trunk can be cut into chunks, or None where that would change the embedding.

    How far the trunk looks is added up over its convolutions as if each followed the one before, which is never too
    little; whether it looks at more than convolutions see is tried on noise.
    """
    pooling = next((m for m in network.modules() if type(m).__module__.endswith("pooling_layers")), None)
    if pooling is None:
        return None
    generator = torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    stride, halo = _reach(network, pooling, torch.randn(1, _PROBE_FRAMES, mels, generator=generator).to(device))
    trunk = Trunk(network, pooling, stride, halo)
    noise = torch.randn(1, 2 * halo + 3 * _PROBE_FRAMES + 5, mels, generator=generator).to(device)
    whole, cut = run_network(network, noise), trunk.embed(noise, chunk_frames=_PROBE_FRAMES)
    difference = (whole - cut).abs().max() / whole.abs().max()
    log.debug("cut into chunks with %d frames around each, the embedding moves by %.1e", halo, difference)
    return trunk if difference < _LARGEST_RELATIVE_DIFFERENCE else None


def _reach(network: nn.Module, pooling: nn.Module, probe: torch.Tensor) -> tuple[int, int]:
    """Return the trunk's stride and the frames that it can look to one side, a multiple of the stride."""
    left = right = 0

    def add(conv: nn.Conv1d | nn.Conv2d, given: tuple[torch.Tensor]) -> None:
        nonlocal left, right
        frames_apart = round(probe.shape[1] / given[0].shape[-1])
        padding = conv.padding[-1] if not isinstance(conv.padding, str) else (conv.kernel_size[-1] - 1) // 2
        left += int(padding) * frames_apart
        right += ((conv.kernel_size[-1] - 1) * conv.dilation[-1] - int(padding)) * frames_apart

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                hooks.callback(module.register_forward_pre_hook(add).remove)
        output = _trunk_output(network, pooling, probe)
    stride = max(1, round(probe.shape[1] / output.shape[-1]))
    return stride, -(-max(left, right) // stride) * stride


class _PoolingReachedError(Exception):
    """End the run of a trunk where the pooling begins, with what that is given."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given = given


def _trunk_output(network: nn.Module, pooling: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Run a network up to its pooling and return what that is given, `(1, ..., frames)`."""

    def stop(given: torch.Tensor) -> torch.Tensor:
        raise _PoolingReachedError(given)

    with _before(pooling, stop):
        try:
            network(features)
        except _PoolingReachedError as reached:
            return reached.given
    raise AssertionError("the network did not reach its pooling")


@contextmanager
def _before(module: nn.Module, change: Network) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _, given: (change(given[0]),))
    try:
        yield
    finally:
        handle.remove()
