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
from balr.embeddings.exact.padding import LARGEST_RELATIVE_DIFFERENCE
from balr.embeddings.exact.precision import refuse_far
from balr.errors import ConfigError

log = logging.getLogger(__name__)

_PROBE_FRAMES = (200, 331, 90)


def check_engine(engine: str, device: torch.device) -> None:
    """Raise ConfigError where there is no such engine, or not here."""
    if engine not in ("torch", "openvino"):
        raise ConfigError(f"embeddings.model.engine={engine}: must be torch or openvino.")
    if engine == "openvino" and device.type != "cpu":
        raise ConfigError(f"embeddings.model.engine=openvino: runs on a CPU, and device is {device}.")
    if engine == "openvino":
        try:
            import onnx
            import openvino
        except ImportError as error:
            raise ConfigError(
                "embeddings.model.engine=openvino: is not installed: pip install 'balr[openvino]'."
            ) from error
        log.debug("OpenVINO %s, ONNX %s", openvino.__version__, onnx.__version__)


class CompiledNetwork:
    """Run batches of one length through a compiled network, and through the network itself what that cannot take.

    OpenVINO refuses CAM++ features of under two seconds, say. Each thread has a request of its own.
    """

    def __init__(self, network: nn.Module, *, mels: int, time_dim: int, dtype: torch.dtype, requests: int) -> None:
        """Compile a network in evaluation mode for features of any batch size and number of frames.

        Raises ConfigError where OpenVINO cannot run the network or would move its embeddings.
        """
        import openvino

        self._network = network
        self._mels = mels
        self._time_dim = time_dim
        self.left_to_torch = 0
        self._here = threading.local()
        try:
            core = openvino.Core()
            hints = {
                "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16",
                "PERFORMANCE_HINT": "THROUGHPUT",
                "NUM_STREAMS": requests,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            }
            with TemporaryDirectory() as folder:
                _export(network, Path(folder) / "network.onnx", mels, time_dim)
                graph = core.read_model(Path(folder) / "network.onnx")
            self._compiled: Any = core.compile_model(graph, "CPU", hints)
        except RuntimeError as error:
            raise ConfigError(f"embeddings.model.engine=openvino: cannot run this network: {error}") from error
        self._try(dtype)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(batch, dim)` of a batch of features."""
        try:
            return self._infer(features)
        except RuntimeError as error:
            self.left_to_torch += 1
            log.debug("%d frames are left to torch: %s", features.shape[self._time_dim], error)
            return run_network(self._network, features)

    def _infer(self, features: torch.Tensor) -> torch.Tensor:
        if not hasattr(self._here, "request"):
            self._here.request = self._compiled.create_infer_request()
        (embeddings,) = self._here.request.infer({0: features.numpy()}).values()
        return torch.from_numpy(embeddings.copy())

    @torch.inference_mode()
    def _try(self, dtype: torch.dtype) -> None:
        """Compare with the network itself on noise of several lengths, of which some may be refused but not all."""
        moved = []
        for frames in _PROBE_FRAMES:
            noise = _noise(frames, self._mels, self._time_dim)
            expected = run_network(self._network, noise)
            try:
                made = self._infer(noise)
            except RuntimeError as error:
                log.debug("%d frames are refused: %s", frames, error)
                continue
            moved.append(float((made - expected).abs().max() / expected.abs().max()))
            if dtype != torch.float32:
                refuse_far(made, expected, "embeddings.model.engine=openvino with 16 bits")
        if not moved:
            raise ConfigError("embeddings.model.engine=openvino: refuses features of any length here; use torch.")
        log.info("compiled by OpenVINO; embeddings of noise move by %.1e", max(moved))
        if not max(moved) < LARGEST_RELATIVE_DIFFERENCE[dtype]:
            raise ConfigError(
                f"embeddings.model.engine=openvino: would move embeddings by {max(moved):.1e}; use torch."
            )


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
