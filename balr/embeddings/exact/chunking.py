"""Long utterances in bounded memory: the layers before the pooling run over overlapping chunks of the features.

Each chunk is read with a halo as wide as the receptive field of the convolutions, so its frames are those of the whole
utterance. Pooling by mean and variance then gets two frames with the mean and variance of all; any other pooling gets
all frames. Networks with global context (squeeze and excitation, attention, context masks) cannot be chunked.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import nn

from balr.embeddings.architectures import find_pooling, has_global_context, run_network
from balr.embeddings.exact.lengths import kernel_span
from balr.embeddings.exact.precision import LARGEST_RELATIVE_DIFFERENCE, noise, relative_difference
from balr.embeddings.exact.verdicts import Verdicts

log = logging.getLogger(__name__)

_PROBE_FRAMES = 200
# Times longer than where torch computes on a CPU: chunks run in torch, which is slower than OpenVINO, and a GPU has the
# memory, and is not busy with a chunk for longer than its launch takes.
_LONGER_IN_OPENVINO, _LONGER_ON_A_GPU = 3, 10


def longest_whole(chunk_seconds: float, *, engine: str, device: torch.device) -> float:
    """Return the seconds of audio up to which an utterance is not cut into chunks."""
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
        self.pooling = pooling
        self._thread = threading.local()
        pooling.register_forward_pre_hook(self._replace_input)

    def embed(
        self, features: torch.Tensor, *, chunk_frames: int, on_chunk: Callable[[int], None] = lambda _: None
    ) -> torch.Tensor:
        """Embed features `(1, frames, mels)` to `(1, dim)`, in chunks of about `chunk_frames` frames.

        `on_chunk` is called after each chunk with the number of its frames.
        """
        chunks = self._chunks(features, chunk_frames, on_chunk)
        pooled = _merge_moments(chunks) if self.takes_moments else torch.cat(list(chunks), dim=-1)
        # To run the pooling and what follows, the network gets a few frames whose place `pooled` takes.
        return self._run(features[:, :_PROBE_FRAMES], lambda _: pooled)

    def before_pooling(self, features: torch.Tensor) -> torch.Tensor:
        """Return the input `(1, ..., frames / stride)` of the pooling for features `(1, frames, mels)`."""
        found: list[torch.Tensor] = []

        def take(inputs: torch.Tensor) -> torch.Tensor:
            found.append(inputs)
            return inputs.new_zeros(*inputs.shape[:-1], 2)  # what follows costs next to nothing for two frames

        self._run(features, take)
        return found[0]

    def _chunks(
        self, features: torch.Tensor, chunk_frames: int, on_chunk: Callable[[int], None]
    ) -> Iterator[torch.Tensor]:
        # At least as long as the halo: most work on shorter chunks would be for the overlap.
        step = max(1, max(chunk_frames, self.halo) // self.stride) * self.stride
        for start in range(0, features.shape[1], step):
            first, end = max(0, start - self.halo), start + step
            skip = (start - first) // self.stride
            last = None if end >= features.shape[1] else skip + step // self.stride
            chunk = self.before_pooling(features[:, first : end + self.halo])[..., skip:last]
            on_chunk(min(end, features.shape[1]) - start)
            if chunk.shape[-1]:  # without padding, a short last chunk may give no frame
                yield chunk

    def _run(self, features: torch.Tensor, replace: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Run the network with another input of the pooling."""
        self._thread.replace = replace
        try:
            return run_network(self.network, features)
        finally:
            del self._thread.replace

    def _replace_input(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
        return (self._thread.replace(inputs[0]),) if hasattr(self._thread, "replace") else None


def make_chunked(network: nn.Module, mels: int, *, verdicts: Verdicts) -> ChunkedNetwork | None:
    """Return the network in a form that runs on chunks, or None if that would change the embedding.

    The halo is the sum of what each convolution sees, which is never too small; a trial on noise shows whether the
    network sees more than that.
    """
    pooling = find_pooling(network)
    if pooling is None or any(map(has_global_context, set(network.modules()) - set(pooling.modules()))):
        return None
    chunked = ChunkedNetwork(network, pooling)
    is_exact, *found = verdicts.of("chunked", lambda: _trial(chunked, mels))
    chunked.stride, chunked.halo, chunked.takes_moments = found
    return chunked if is_exact else None


def _trial(chunked: ChunkedNetwork, mels: int) -> tuple[bool, int, int, bool]:
    """Return whether chunks keep the embedding of noise, the stride, the halo, and whether moments keep it as well."""
    device = next(chunked.network.parameters()).device
    chunked.stride, chunked.halo = _stride_and_halo(chunked, noise(1, _PROBE_FRAMES, mels).to(device))
    total = 2 * chunked.halo + 3 * _PROBE_FRAMES + 5
    louder = torch.linspace(0.1, 5.0, total).reshape(1, total, 1)  # so that each chunk has other statistics
    features = (noise(1, total, mels) * louder).to(device)
    whole = run_network(chunked.network, features)
    tolerance = max(LARGEST_RELATIVE_DIFFERENCE[parameter.dtype] for parameter in chunked.network.parameters())

    def is_exact(*, takes_moments: bool) -> bool:
        chunked.takes_moments = takes_moments
        difference = relative_difference(chunked.embed(features, chunk_frames=_PROBE_FRAMES), whole)
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
    halo = 0
    this_thread = threading.get_ident()

    def add(conv: nn.Conv1d | nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        nonlocal halo
        if threading.get_ident() != this_thread:  # another thread embeds with the same network
            return
        frame_step = round(probe.shape[1] / inputs[0].shape[-1])
        span, _, padding, _ = kernel_span(conv)
        halo += max(padding, span - 1 - padding) * frame_step

    with ExitStack() as hooks:
        for module in set(chunked.network.modules()) - set(chunked.pooling.modules()):
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                hooks.callback(module.register_forward_pre_hook(add).remove)
        frames = chunked.before_pooling(probe).shape[-1]
    stride = max(1, round(probe.shape[1] / frames))
    return stride, -(-halo // stride) * stride
