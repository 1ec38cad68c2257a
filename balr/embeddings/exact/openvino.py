"""OpenVINO instead of torch on a CPU: the same network, compiled for the processor."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from balr.config import DataConfig
from balr.embeddings.architectures import run_network
from balr.embeddings.devices import resolve_loading
from balr.embeddings.exact.lengths import kernel_span
from balr.embeddings.exact.precision import (
    LARGEST_RELATIVE_DIFFERENCE,
    least_cosine,
    noise,
    refuse_far,
    relative_difference,
)
from balr.embeddings.exact.verdicts import Verdicts
from balr.embeddings.frontend import Frontend
from balr.errors import ConfigError

log = logging.getLogger(__name__)

_PROBES = 2
_PROBE_FRAMES = (200, 331, 90)
_SEGMENT_FRAMES = 100  # of CAMLayer.seg_pooling
_MOST_CHANNELS = 2048  # in one convolution of kernel size 1


def check_engine(engine: str, device: torch.device) -> None:
    """Raise ConfigError if an engine does not exist or does not run on the device."""
    if engine not in ("auto", "torch", "openvino"):
        raise ConfigError(f"embeddings.model.engine={engine}: must be auto, torch or openvino.")
    if engine == "openvino" and device.type != "cpu":
        raise ConfigError(f"embeddings.model.engine=openvino: runs on a CPU, and device is {device}.")


def compiled(
    network: nn.Module,
    engine: str,
    device: torch.device,
    *,
    frontend: Frontend,
    dtype: torch.dtype,
    verdicts: Verdicts,
) -> "CompiledNetwork | None":
    """Return the network for an engine, None for torch; for `auto` also where OpenVINO cannot run it.

    Raises ConfigError where it was asked for and cannot.
    """
    if engine == "torch" or device.type != "cpu":
        return None
    try:
        requests = resolve_loading(DataConfig(), device).concurrent_batches
        return CompiledNetwork(network, mels=frontend.mels, dtype=dtype, requests=requests, verdicts=verdicts)
    except (ConfigError, ImportError) as error:
        if engine != "auto":
            raise
        log.info("torch computes: %s", error)
        return None


class CompiledNetwork:
    """Run batches of one length through a compiled network; what OpenVINO refuses runs in torch."""

    def __init__(self, network: nn.Module, *, mels: int, dtype: torch.dtype, requests: int, verdicts: Verdicts) -> None:
        """Compile a network in evaluation mode for features of any batch size and number of frames.

        `requests` batches may run at a time. Raises ConfigError if OpenVINO cannot run the network, or moves its
        embeddings.
        """
        import openvino

        self._network = network
        self._mels = mels
        self._idle: SimpleQueue[Any] = SimpleQueue()
        try:
            core = openvino.Core()
            hints = {
                "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16",
                "PERFORMANCE_HINT": "THROUGHPUT",
                "NUM_STREAMS": requests,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            }
            graph = core.read_model(_exported(network, mels))
            embeddings_alone = openvino.Model(graph.get_results()[-1:], graph.get_parameters())
            program = core.compile_model(embeddings_alone, "CPU", hints)
            for _ in range(requests):  # now, as creating one waits for the inference of another
                self._idle.put(program.create_infer_request())
        except RuntimeError as error:
            raise ConfigError(f"embeddings.model.engine=openvino: cannot run this network: {error}") from error
        for frames in reversed(_PROBE_FRAMES):  # the first call in one thread: two at once may wait for ever
            with suppress(RuntimeError):
                self._infer(noise(_PROBES, frames, mels))
                break
        moved, cosine = verdicts.of("openvino", self._compare)
        log.info("compiled by OpenVINO; embeddings of noise move by %.1e", moved)
        if dtype != torch.float32:
            refuse_far(cosine, "embeddings.model.engine=openvino with 16 bits")
        if not moved < LARGEST_RELATIVE_DIFFERENCE[dtype]:
            raise ConfigError(f"embeddings.model.engine=openvino: would move embeddings by {moved:.1e}; use torch.")

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of features `(batch, frames, mels)`."""
        try:
            return self._infer(features)
        except RuntimeError as error:
            log.debug("a batch of %d frames runs in torch: %s", features.shape[1], error)
            return run_network(self._network, features)

    def _infer(self, features: torch.Tensor) -> torch.Tensor:
        request = self._idle.get()
        try:
            (embeddings,) = request.infer({0: features.numpy()}).values()
            return torch.from_numpy(embeddings.copy())
        finally:
            self._idle.put(request)

    @torch.inference_mode()
    def _compare(self) -> tuple[float, float]:
        """Compare with the network itself on noise of several lengths, of which OpenVINO may refuse some, but not all.

        Returns the largest relative difference and the least cosine of the embeddings. Raises ConfigError.
        """
        found = []
        for frames in _PROBE_FRAMES:
            features = noise(_PROBES, frames, self._mels)
            reference = run_network(self._network, features)
            try:
                embeddings = self._infer(features)
            except RuntimeError as error:
                log.debug("%d frames are refused: %s", frames, error)
                continue
            found.append((relative_difference(embeddings, reference), least_cosine(embeddings, reference)))
        if not found:
            raise ConfigError("embeddings.model.engine=openvino: refuses features of any length here; use torch.")
        differences, cosines = zip(*found, strict=True)
        return max(differences), min(cosines)


def _exported(network: nn.Module, mels: int) -> BytesIO:
    """Return a network as ONNX, which OpenVINO reads without its own converter, which collects usage data."""
    exported = BytesIO()  # a disk may be full
    with warnings.catch_warnings(), _rewritten_layers(network):
        warnings.simplefilter("ignore")  # tracing fixes some lengths, which the comparison checks; a newer exporter
        torch.onnx.export(
            network,
            (noise(_PROBES, _PROBE_FRAMES[0], mels),),
            exported,  # type: ignore[arg-type]  # it takes one
            input_names=["features"],
            dynamic_axes={"features": {0: "batch", 1: "frames"}},
            dynamo=False,
        )
    exported.seek(0)
    return exported


@contextmanager
def _rewritten_layers(network: nn.Module) -> Iterator[None]:
    """Let some layers compute the same by operations that suit OpenVINO, meanwhile.

    CAM++ averages segments by sums, as OpenVINO refuses a pooling window that is longer than its input. Convolutions of
    kernel size 1 that read very many channels are added up in parts: at many lengths, its kernel for AVX2 takes three
    times as long for ECAPA's 3072 channels as for two times 1536.
    """
    changed: list[tuple[nn.Module, str]] = []
    for module in network.modules():
        if type(module).__name__ == "CAMLayer":
            vars(module)["seg_pooling"] = _segment_means
            changed.append((module, "seg_pooling"))
        elif type(module) is nn.Conv1d and _is_wide(module):
            vars(module)["forward"] = partial(_in_parts, module)
            changed.append((module, "forward"))
    try:
        yield
    finally:
        for module, name in changed:
            del vars(module)[name]


def _is_wide(conv: nn.Conv1d) -> bool:
    return conv.in_channels > _MOST_CHANNELS and conv.groups == 1 and kernel_span(conv) == (1, 1, 0, 0)


def _in_parts(layer: nn.Conv1d, features: torch.Tensor) -> torch.Tensor:
    """Convolve features `(batch, channels, frames)` some channels at a time, and add up the results."""
    count = -(-layer.in_channels // _MOST_CHANNELS)
    first, *others = zip(features.chunk(count, dim=1), layer.weight.chunk(count, dim=1), strict=True)
    total = nn.functional.conv1d(*first, layer.bias)
    for part, weight in others:
        total = total + nn.functional.conv1d(part, weight)
    return total


def _segment_means(features: torch.Tensor) -> torch.Tensor:
    """Return features `(batch, channels, frames)` of which each frame is the mean of its segment of 100 frames."""
    batch, channels, frames = features.shape
    lacking = -frames % _SEGMENT_FRAMES

    def sums(values: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(values, (0, lacking))
        return padded.reshape(*values.shape[:2], -1, _SEGMENT_FRAMES).sum(-1, keepdim=True)

    means = sums(features) / sums(torch.ones_like(features[:1, :1]))
    return means.expand(-1, -1, -1, _SEGMENT_FRAMES).reshape(batch, channels, -1)[..., :frames]
