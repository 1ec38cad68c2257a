"""Long utterances in bounded memory: a convolutional trunk runs over overlapping chunks, the pooling over all frames.

Each frame that a chunk contributes has all around it that its convolutions see, so it is the frame of the whole
utterance. A pooling that rests on mean and variance alone is given two frames with those of all; another one is given
all frames, a small part of what the trunk holds on the way. A trunk that looks at the whole utterance (squeeze and
excitation, attention, context masks) cannot be cut; that is found by trying.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from balr.embeddings.architectures import find_pooling, has_global_context, run_network

log = logging.getLogger(__name__)

_PROBE_FRAMES = 200
_LARGEST_RELATIVE_DIFFERENCE = 3e-5
_LARGEST_RELATIVE_DIFFERENCE_IN_16_BITS = 2e-2

Change = Callable[[torch.Tensor], torch.Tensor]


class ChunkedNetwork:
    """Hold a network whose trunk can be cut: frames in for each frame out (stride), and how far it looks (halo).

    Threads may share it: what the pooling is given is changed only in the thread that asks for that.
    """

    def __init__(self, network: nn.Module, pooling: nn.Module) -> None:
        self.network = network
        self.stride = 1
        self.halo = 0
        self.takes_moments = False
        self._here = threading.local()
        pooling.register_forward_pre_hook(self._before_pooling)

    def embed(self, features: torch.Tensor, *, chunk_frames: int) -> torch.Tensor:
        """Embed features `(1, frames, mels)` as the whole network would, the trunk over chunks of about that size."""
        chunks = self._chunks(features, chunk_frames)
        frames = _with_moments_of(chunks) if self.takes_moments else self._joined(chunks, features.shape[1])
        # The rest of the network runs as it is, on a few frames whose place these take before the pooling.
        with self._changing(lambda _: frames):
            return run_network(self.network, features[:, :_PROBE_FRAMES])

    def run(self, features: torch.Tensor) -> torch.Tensor:
        """Run the network up to its pooling and return what that is given, `(1, ..., frames)`."""
        with self._changing(_stop):
            try:
                self.network(features)
            except _PoolingReachedError as reached:
                return reached.given
        raise AssertionError("the network did not reach its pooling")

    def _chunks(self, features: torch.Tensor, chunk_frames: int) -> Iterator[torch.Tensor]:
        # A chunk much shorter than what lies around it would be mostly work done twice.
        step = max(1, max(chunk_frames, self.halo) // self.stride) * self.stride
        for start in range(0, features.shape[1], step):
            first, after = max(0, start - self.halo), start + step
            made = self.run(features[:, first : after + self.halo])
            skip = (start - first) // self.stride
            made = made[..., skip : None if after >= features.shape[1] else skip + step // self.stride]
            if made.shape[-1]:  # a trunk without padding makes nothing of a short last chunk
                yield made

    def _joined(self, chunks: Iterator[torch.Tensor], total: int) -> torch.Tensor:
        kept: torch.Tensor | None = None
        filled = 0
        for made in chunks:
            if kept is None:
                kept = made.new_empty(*made.shape[:-1], -(-total // self.stride))
            kept[..., filled : filled + made.shape[-1]] = made
            filled += made.shape[-1]
        assert kept is not None
        return kept[..., :filled]

    @contextmanager
    def _changing(self, change: Change) -> Iterator[None]:
        self._here.change = change
        try:
            yield
        finally:
            self._here.change = None

    def _before_pooling(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
        change: Change | None = getattr(self._here, "change", None)
        return None if change is None else (change(given[0]),)


def make_chunked(network: nn.Module, mels: int) -> ChunkedNetwork | None:
    """Return the network as one whose trunk can be cut into chunks, or None where that would change the embedding.

    How far the trunk looks is added up over its convolutions as if each followed the one before, which is never too
    little; whether it looks at more than convolutions see is tried on noise.
    """
    pooling = find_pooling(network)
    if pooling is None or any(has_global_context(module) for module in network.modules() if module is not pooling):
        return None
    generator = torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    trunk = ChunkedNetwork(network, pooling)
    trunk.stride, trunk.halo = _reach(trunk, torch.randn(1, _PROBE_FRAMES, mels, generator=generator).to(device))
    total = 2 * trunk.halo + 3 * _PROBE_FRAMES + 5
    louder = torch.linspace(0.1, 5.0, total).reshape(1, total, 1)  # what looks at all time sees chunks apart
    noise = (torch.randn(1, total, mels, generator=generator) * louder).to(device)
    whole = run_network(network, noise)
    tolerance = _LARGEST_RELATIVE_DIFFERENCE
    if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in network.parameters()):
        tolerance = _LARGEST_RELATIVE_DIFFERENCE_IN_16_BITS
    for takes_moments in (False, True):
        trunk.takes_moments = takes_moments
        cut = trunk.embed(noise, chunk_frames=_PROBE_FRAMES)
        difference = float((whole - cut).abs().max() / whole.abs().max())
        log.debug("in chunks, %d frames around each, moments %s: moved by %.1e", trunk.halo, takes_moments, difference)
        if not difference < tolerance:
            trunk.takes_moments = False
            return trunk if takes_moments else None
    return trunk


def _with_moments_of(chunks: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return two frames whose mean and (unbiased) variance are those of all frames, merged as Chan et al. (1979) do."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        frames = chunk.to("cpu" if chunk.device.type == "mps" else chunk.device, torch.float64)  # mps has none
        added = frames.shape[-1]
        chunk_mean = frames.mean(dim=-1)
        chunk_squares = (frames - chunk_mean.unsqueeze(-1)).square().sum(dim=-1)
        if count == 0:
            mean, squares = torch.zeros_like(chunk_mean), torch.zeros_like(chunk_mean)
        apart = chunk_mean - mean
        mean = mean + apart * (added / (count + added))
        squares = squares + chunk_squares + apart.square() * (count * added / (count + added))
        count += added
    spread = (squares / (count - 1) / 2).sqrt()
    return torch.stack((mean - spread, mean + spread), dim=-1).to(chunk.device, torch.float32)


def _reach(trunk: ChunkedNetwork, probe: torch.Tensor) -> tuple[int, int]:
    """Return the trunk's stride and the frames that it can look to one side, a multiple of the stride."""
    left = right = 0
    this_thread = threading.get_ident()

    def add(conv: nn.Conv1d | nn.Conv2d, given: tuple[torch.Tensor]) -> None:
        nonlocal left, right
        if threading.get_ident() != this_thread:
            return
        frames_apart = round(probe.shape[1] / given[0].shape[-1])
        padding = conv.padding[-1] if not isinstance(conv.padding, str) else (conv.kernel_size[-1] - 1) // 2
        left += int(padding) * frames_apart
        right += ((conv.kernel_size[-1] - 1) * conv.dilation[-1] - int(padding)) * frames_apart

    with ExitStack() as hooks:
        for module in trunk.network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                hooks.callback(module.register_forward_pre_hook(add).remove)
        output = trunk.run(probe)
    stride = max(1, round(probe.shape[1] / output.shape[-1]))
    return stride, -(-max(left, right) // stride) * stride


class _PoolingReachedError(Exception):
    """End the run of a trunk where the pooling begins, with what that is given."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given = given


def _stop(given: torch.Tensor) -> torch.Tensor:
    raise _PoolingReachedError(given)
