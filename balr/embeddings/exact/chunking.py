"""Long utterances in bounded memory: the layers before the pooling run over overlapping chunks of the features.

Each chunk is read with a halo as wide as the receptive field of the convolutions, so its frames are those of the whole
utterance. Pooling by mean and variance then gets two frames with the mean and variance of all; any other pooling gets
all frames. Networks with global context (squeeze and excitation, attention, context masks) cannot be chunked.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf

import torch
from torch import nn

from balr.embeddings.architectures import find_pooling, has_global_context, run_network
from balr.embeddings.exact.lengths import kernel_span
from balr.embeddings.exact.precision import LARGEST_RELATIVE_DIFFERENCE, relative_difference
from balr.embeddings.exact.verdicts import Verdicts

log = logging.getLogger(__name__)

_PROBE_FRAMES = 200
# Times longer than where torch computes on a CPU: chunks run in torch, which is slower than OpenVINO, and a GPU has the
# memory, and is not busy with a chunk for longer than its launch takes.
_LONGER_IN_OPENVINO, _LONGER_ON_A_GPU = 3, 10


def longest_whole(chunk_seconds: float | None, *, engine: str, device: torch.device) -> float:
    """Return the seconds of audio up to which an utterance is not cut into chunks."""
    if chunk_seconds is None:
        return inf
    times = _LONGER_IN_OPENVINO if engine == "openvino" else _LONGER_ON_A_GPU if device.type == "cuda" else 1
    return chunk_seconds * times


class ChunkedNetwork:
    """Run the layers before the pooling on chunks: `stride` input frames per output frame, `halo` frames on each side.

    Threads may share it: each one replaces the pooling's input for itself only.
    """

    def __init__(self, network: nn.Module, pooling: nn.Module) -> None:
        self.network = network
        self.stride = 1
        self.halo = 0
        self.takes_moments = False
        self._thread = threading.local()
        pooling.register_forward_pre_hook(self._before_pooling)

    def embed(
        self, features: torch.Tensor, *, chunk_frames: int, on_chunk: Callable[[int], None] = lambda _: None
    ) -> torch.Tensor:
        """Embed features `(1, frames, mels)` to `(1, dim)`, in chunks of about `chunk_frames` frames.

        `on_chunk` is called after each chunk with the number of its frames.
        """
        chunks = self._chunks(features, chunk_frames, on_chunk)
        pooled = _merge_moments(chunks) if self.takes_moments else torch.cat(list(chunks), dim=-1)
        # To run the pooling and what follows, the network gets a few frames whose place `pooled` takes.
        with self._replace_pooling_input(lambda _: pooled):
            return run_network(self.network, features[:, :_PROBE_FRAMES])

    def run(self, features: torch.Tensor) -> torch.Tensor:
        """Run features `(1, frames, mels)` up to the pooling and return its input `(1, ..., frames / stride)`."""
        with self._replace_pooling_input(_stop):
            try:
                self.network(features)
            except _PoolingReachedError as reached:
                inputs: torch.Tensor = reached.args[0]
                return inputs
        raise AssertionError("the network did not reach its pooling")

    def _chunks(
        self, features: torch.Tensor, chunk_frames: int, on_chunk: Callable[[int], None]
    ) -> Iterator[torch.Tensor]:
        # At least as long as the halo: most work on shorter chunks would be for the overlap.
        step = max(1, max(chunk_frames, self.halo) // self.stride) * self.stride
        for start in range(0, features.shape[1], step):
            first, end = max(0, start - self.halo), start + step
            skip = (start - first) // self.stride
            last = None if end >= features.shape[1] else skip + step // self.stride
            chunk = self.run(features[:, first : end + self.halo])[..., skip:last]
            on_chunk(min(end, features.shape[1]) - start)
            if chunk.shape[-1]:  # without padding, a short last chunk may give no frame
                yield chunk

    @contextmanager
    def _replace_pooling_input(self, replace: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        self._thread.replace = replace
        try:
            yield
        finally:
            del self._thread.replace

    def _before_pooling(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
        return (self._thread.replace(inputs[0]),) if hasattr(self._thread, "replace") else None


def make_chunked(network: nn.Module, mels: int, *, verdicts: Verdicts) -> ChunkedNetwork | None:
    """Return the network in a form that runs on chunks, or None if that would change the embedding.

    The halo is the sum of what each convolution sees, which is never too small; a trial on noise shows whether the
    network sees more than that.
    """
    pooling = find_pooling(network)
    if pooling is None or any(has_global_context(module) for module in network.modules() if module is not pooling):
        return None
    chunked = ChunkedNetwork(network, pooling)
    is_exact, *found = verdicts.of("chunked", lambda: _trial(chunked, mels))
    chunked.stride, chunked.halo, chunked.takes_moments = found
    return chunked if is_exact else None


def _trial(chunked: ChunkedNetwork, mels: int) -> tuple[bool, int, int, bool]:
    """Return whether chunks keep the embedding of noise, the stride, the halo, and whether moments keep it as well."""
    generator = torch.Generator().manual_seed(0)
    device = next(chunked.network.parameters()).device
    probe = torch.randn(1, _PROBE_FRAMES, mels, generator=generator).to(device)
    chunked.stride, chunked.halo = _stride_and_halo(chunked, probe)
    total = 2 * chunked.halo + 3 * _PROBE_FRAMES + 5
    louder = torch.linspace(0.1, 5.0, total).reshape(1, total, 1)  # so that each chunk has other statistics
    noise = (torch.randn(1, total, mels, generator=generator) * louder).to(device)
    whole = run_network(chunked.network, noise)
    tolerance = max(LARGEST_RELATIVE_DIFFERENCE[parameter.dtype] for parameter in chunked.network.parameters())

    def is_exact(*, takes_moments: bool) -> bool:
        chunked.takes_moments = takes_moments
        difference = relative_difference(chunked.embed(noise, chunk_frames=_PROBE_FRAMES), whole)
        log.debug("in chunks: halo %d, moments %s, difference %.1e", chunked.halo, takes_moments, difference)
        return difference < tolerance

    exact = is_exact(takes_moments=False)
    return exact, chunked.stride, chunked.halo, exact and is_exact(takes_moments=True)


def _merge_moments(chunks: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return two frames `(1, ..., 2)` with the mean and unbiased variance of all chunks (Chan et al., 1979)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        frames = chunk.to("cpu" if chunk.device.type == "mps" else chunk.device, torch.float64)  # mps has no float64
        added = frames.shape[-1]
        chunk_mean = frames.mean(dim=-1)
        chunk_squares = (frames - chunk_mean.unsqueeze(-1)).square().sum(dim=-1)
        delta = chunk_mean - mean
        mean = mean + delta * (added / (count + added))
        squares = squares + chunk_squares + delta.square() * (count * added / (count + added))
        count += added
    spread = (squares / (count - 1) / 2).sqrt()
    return torch.stack((mean - spread, mean + spread), dim=-1).to(chunk.device, torch.float32)


def _stride_and_halo(chunked: ChunkedNetwork, probe: torch.Tensor) -> tuple[int, int]:
    """Return the network's stride before the pooling, and its halo in input frames, a multiple of the stride."""
    left = right = 0
    this_thread = threading.get_ident()

    def add(conv: nn.Conv1d | nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        nonlocal left, right
        if threading.get_ident() != this_thread:  # another thread embeds with the same network
            return
        frame_step = round(probe.shape[1] / inputs[0].shape[-1])
        span, _, padding, _ = kernel_span(conv)
        left += padding * frame_step
        right += (span - 1 - padding) * frame_step

    with ExitStack() as hooks:
        for module in chunked.network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                hooks.callback(module.register_forward_pre_hook(add).remove)
        frames = chunked.run(probe).shape[-1]
    stride = max(1, round(probe.shape[1] / frames))
    return stride, -(-max(left, right) // stride) * stride


class _PoolingReachedError(Exception):
    """End a run where the pooling would begin; the argument is the pooling's input `(1, ..., frames)`."""


def _stop(inputs: torch.Tensor) -> torch.Tensor:
    raise _PoolingReachedError(inputs)
