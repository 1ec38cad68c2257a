"""OpenVINO in torch's place on a CPU: the same network as a graph compiled for the processor, an optional extra."""

import logging
import threading
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from balr.embeddings.architectures import run_network
from balr.embeddings.lengths import LARGEST_RELATIVE_DIFFERENCE
from balr.errors import ConfigError

log = logging.getLogger(__name__)

_PROBE_FRAMES = (200, 331, 90)


class CompiledNetwork:
    """Run batches of one length through a compiled network, and through the network itself what that cannot take.

    OpenVINO refuses CAM++ features of under two seconds, say. Each thread has a request of its own.
    """

    def __init__(self, network: nn.Module, *, mels: int, time_dim: int, dtype: torch.dtype, streams: int) -> None:
        """Compile a network in evaluation mode for features of any batch size and number of frames.

        Raises ConfigError where OpenVINO is not installed, cannot run the network or would move its embeddings.
        """
        try:
            import openvino
        except ImportError as error:
            raise ConfigError(
                "embeddings.model.engine=openvino: is not installed: pip install 'balr[openvino]'."
            ) from error
        self._network = network
        self._time_dim = time_dim
        self._here = threading.local()
        try:
            core = openvino.Core()
            hints = {
                "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16",
                "PERFORMANCE_HINT": "THROUGHPUT",
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            }
            with TemporaryDirectory() as folder:
                _export(network, Path(folder) / "network.onnx", mels, time_dim)
                graph = core.read_model(Path(folder) / "network.onnx")
            self._compiled: Any = core.compile_model(graph, "CPU", hints)
        except RuntimeError as error:
            raise ConfigError(f"embeddings.model.engine=openvino: cannot run this network: {error}") from error
        moved = max(self._difference(_noise(frames, mels, time_dim)) for frames in _PROBE_FRAMES)
        log.info("compiled by OpenVINO %s; embeddings of noise move by %.1e", openvino.__version__, moved)
        if not moved < LARGEST_RELATIVE_DIFFERENCE[dtype]:
            raise ConfigError(f"embeddings.model.engine=openvino: would move embeddings by {moved:.1e}; use torch.")

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of a batch of features."""
        if not hasattr(self._here, "request"):
            self._here.request = self._compiled.create_infer_request()
        try:
            (embeddings,) = self._here.request.infer({0: features.numpy()}).values()
        except RuntimeError as error:
            log.debug("%d frames are left to torch: %s", features.shape[self._time_dim], error)
            return run_network(self._network, features)
        return torch.from_numpy(embeddings.copy())

    @torch.inference_mode()
    def _difference(self, features: torch.Tensor) -> float:
        expected = run_network(self._network, features)
        return float((self(features) - expected).abs().max() / expected.abs().max())


class _LastOutput(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return run_network(self.network, features)


def _export(network: nn.Module, path: Path, mels: int, time_dim: int) -> None:
    """Write a network as ONNX, which OpenVINO reads without its own converter and what that reports home."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, tried on other lengths right after, and of a newer exporter
        torch.onnx.export(
            _LastOutput(network).eval(),
            (_noise(_PROBE_FRAMES[0], mels, time_dim),),
            path,
            input_names=["features"],
            dynamic_axes={"features": {0: "batch", time_dim: "frames"}},
            dynamo=False,
        )


def _noise(frames: int, mels: int, time_dim: int) -> torch.Tensor:
    shape = (2, frames, mels) if time_dim == 1 else (2, mels, frames)
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames))
