"""`WespeakerModel`: a published WeSpeaker checkpoint as an embeddings model."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property, partial
from math import inf
from pathlib import Path
from typing import Any

import torch

from balr.atomic import sha256
from balr.checkpoints import find_checkpoint
from balr.config import FeaturesConfig
from balr.data.audio_budget import AudioBudget
from balr.data.batching import group_by_length
from balr.data.pinned import copied_to
from balr.embeddings.architectures import run_network
from balr.embeddings.base import EmbeddingsModel
from balr.embeddings.devices import select_device
from balr.embeddings.exact.attention import attend_in_blocks
from balr.embeddings.exact.chunking import ChunkedNetwork, longest_whole, make_chunked
from balr.embeddings.exact.cudnn import avoid_fft, fuse_relu
from balr.embeddings.exact.folding import channels_last, fold
from balr.embeddings.exact.kernels import exact_kernels
from balr.embeddings.exact.openvino import check_engine, compiled
from balr.embeddings.exact.padding import RaggedNetwork, by_group
from balr.embeddings.exact.pointwise import run_pointwise_in_onednn
from balr.embeddings.exact.precision import checked_precision, lower_trunk
from balr.embeddings.exact.probe import (
    EXAMPLE_SECONDS,
    LONGEST_SHORTEST_SECONDS,
    Run,
    embedder,
    shortest_near,
    shortest_seconds,
    white_noise,
)
from balr.embeddings.exact.verdicts import Verdicts
from balr.embeddings.frontend import build_with_frontend
from balr.embeddings.weights import load_weights, read_config
from balr.errors import CheckpointError, ConfigError, UtteranceError

log = logging.getLogger(__name__)


class WespeakerModel(EmbeddingsModel):
    """Embed waveforms with a WeSpeaker checkpoint, as WeSpeaker's recipe does for each utterance alone.

    `model_dir` is where the model's files are downloaded to (None: the Hub's own cache); a folder that holds them needs
    no network. `features` overrides the checkpoint's config. `revision` None means the pinned one of a checkpoint that
    balr lists, else `main`. `precision` is `fp32`, or `bf16` or `fp16` for the layers before the pooling; `engine` is
    `torch`, `openvino` (on a CPU), or `auto`, the latter where it is installed and exact. Raises CheckpointError or
    ConfigError.
    """

    _fewest_frames = 0
    _shortest_in_16_bits: float | None = None

    @exact_kernels()
    def __init__(
        self,
        model_repo: str = "Wespeaker/wespeaker-voxceleb-resnet34-LM",
        model_name: str = "avg_model",
        config_name: str = "config.yaml",
        model_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        features: FeaturesConfig = FeaturesConfig(),
        *,
        revision: str | None = None,
        precision: str = "fp32",
        engine: str = "torch",
    ) -> None:
        self.device = select_device(device)
        self.precision, self.engine = precision, engine
        dtype = checked_precision(precision, self.device)
        check_engine(engine, self.device)
        self.files = find_checkpoint(
            model_repo, model_name, config_name=config_name, model_dir=model_dir, revision=revision
        )
        network = self._load(features)
        self._settings = {"features": dict(self._frontend.settings), "precision": precision}
        self._verdicts = Verdicts({**self._content, **self._settings, "engine": engine}, device=self.device)
        example = self._frontend.compute([white_noise(EXAMPLE_SECONDS, self.sample_rate_hz)])[0].unsqueeze(0)
        fold(network, example, verdicts=self._verdicts)
        attend_in_blocks(network, example, verdicts=self._verdicts)
        self.embedding_dim = self._verdicts.of("dim", lambda: run_network(network, example).shape[-1])
        self._network, example = network.to(self.device), example.to(self.device)
        if self.device.type != "cuda" or dtype != torch.float32:
            channels_last(self._network)
        self._compiled = compiled(
            self._network, engine, self.device, frontend=self._frontend, dtype=dtype, verdicts=self._verdicts
        )
        self.engine = "torch" if self._compiled is None else "openvino"
        run_pointwise_in_onednn(self._network, example, verdicts=self._verdicts)
        if self.device.type == "cuda":
            fuse_relu(self._network, example, dtype=dtype, verdicts=self._verdicts)
            avoid_fft(self._network, example, dtype=dtype, verdicts=self._verdicts)
        self._forward_fp32: Run = partial(run_network, self._network)
        self._forward: Run = self._compiled or self._forward_fp32
        if dtype != torch.float32:
            self._lower(dtype)
        self._ragged = RaggedNetwork(self._network)
        self._budget = AudioBudget()
        log.info("%s from %s on %s", self.architecture, self.files.source, self.device)

    @torch.inference_mode()
    @exact_kernels()
    def embed(
        self,
        waveforms: Sequence[torch.Tensor],
        *,
        chunk_seconds: float = inf,
        max_whole_seconds: float = inf,
    ) -> torch.Tensor:
        """Embed waveforms `(samples,)` in [-1, 1] to `(batch, dim)`, float32 on `device`, each as if it were alone.

        A waveform longer than `chunk_seconds` (OpenVINO: three times that, a GPU: ten times) runs through the network
        in chunks of half that, if the architecture allows it without changing the embedding. Raises UtteranceError if a
        waveform is shorter than the architecture can embed, or longer than `max_whole_seconds` without being chunked.
        """
        seconds = [waveform.numel() / self.sample_rate_hz for waveform in waveforms]
        longest = longest_whole(chunk_seconds, engine=self.engine, device=self.device)
        is_long = [each > max(longest, self._shortest_in_16_bits or 0.0) for each in seconds]
        self._refuse_lengths(min(seconds), max(seconds), max_whole_seconds if any(is_long) else inf)
        with self.stages.timed("features", self.device):
            features = self._frontend.compute(copied_to(self.device, [one.contiguous() for one in waveforms]))
        with self.stages.timed("forward", self.device):
            if not any(is_long):
                return self._embed_features(features).float()
            if self._chunked is None:
                with self._budget.reserve(sum(seconds), of=max_whole_seconds):
                    return self._embed_features(features).float()
            rows = [
                self._embed_in_chunks(one, chunk_seconds) if long else self._embed_features([one])
                for one, long in zip(features, is_long, strict=True)
            ]
            return torch.cat(rows).float()

    def _embed_in_chunks(self, features: torch.Tensor, chunk_seconds: float) -> torch.Tensor:
        assert self._chunked is not None
        rate = self._frontend.frames_per_second
        frames = int(chunk_seconds / 2 * rate)
        return self._chunked.embed(features[None], chunk_frames=frames, on_chunk=lambda n: self.on_progress(n / rate))

    def _embed_features(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embed the features `(frames, mels)` of each utterance to `(batch, dim)`, in as few batches as are exact."""
        frames = list(map(len, features))
        short = [row for row, count in enumerate(frames) if count < self._fewest_frames]
        if short and len(short) < len(frames):
            rest = [row for row, count in enumerate(frames) if count >= self._fewest_frames]
            return by_group(features, [short, rest], self._embed_features)
        if not short and len(features) > 1 and self.takes_ragged_batches:
            return by_group(features, group_by_length(frames), self._ragged)
        run = self._forward_fp32 if short else self._forward
        groups = [[row for row, count in enumerate(frames) if count == each] for each in dict.fromkeys(frames)]
        return by_group(features, groups, lambda group: run(torch.stack(list(group))))

    @cached_property
    def takes_ragged_batches(self) -> bool:
        """Return whether a batch may hold different lengths, which is tried once, on noise on this device."""
        if self._compiled is not None:
            return False
        with torch.inference_mode(), exact_kernels():
            return self._ragged.is_exact(self._frontend.mels, self.device, verdicts=self._verdicts)

    def __repr__(self) -> str:
        return f"<WespeakerModel: {self.architecture} from {self.files.source} on {self.device}>"

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run says of the model: checkpoint by content, features, precision, engine."""
        return {
            **super().describe(),
            "checkpoint": {"source": self.files.source, **self._content},
            **self._settings,
            "shortest_in_16_bits_seconds": self._shortest_in_16_bits,
            "engine": self.engine,
            "embedding_dim": self.embedding_dim,
        }

    def execution_facts(self) -> dict[str, Any]:
        """Return, after a run, how batches and long audio were computed."""
        facts = super().execution_facts()
        lengths = {None: "one utterance each", True: "different, exact by trial", False: "equal frame counts"}
        facts["batching"] |= {"lengths": lengths[vars(self).get("takes_ragged_batches")]}
        return facts

    @cached_property
    def shortest_seconds(self) -> float:
        """Find the shortest audio that this network can embed."""
        find = partial(shortest_seconds, embedder(self._forward_fp32, self._frontend, self.device), self.sample_rate_hz)
        shortest: float = self._verdicts.of("shortest", find)
        return min(shortest, LONGEST_SHORTEST_SECONDS)

    def _load(self, features: FeaturesConfig) -> torch.nn.Module:
        config = read_config(self.files.config)
        try:
            network, self._frontend = build_with_frontend(config, features)
        except CheckpointError as error:
            raise CheckpointError(f"{self.files.config}: {error}") from error
        load_weights(network, self.files.weights)
        self.architecture, self.sample_rate_hz = config.architecture, self._frontend.sample_rate_hz
        self._content = {
            "architecture": self.architecture,
            "weights_sha256": sha256(self.files.weights),
            "config_sha256": sha256(self.files.config),
        }
        return network

    def _lower(self, dtype: torch.dtype) -> None:
        """Convert the network to 16 bits, and keep a copy in fp32 if there is audio that is too short for them."""
        self._forward_fp32 = partial(run_network, deepcopy(self._network))
        lower_trunk(self._network, dtype)
        lowered, exact = (embedder(run, self._frontend, self.device) for run in (self._forward, self._forward_fp32))
        find = partial(shortest_near, lowered, exact, self.sample_rate_hz, shortest=self.shortest_seconds)
        try:
            near: float = self._verdicts.of("shortest in 16 bits", find)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(f"precision: {self.architecture} does not run in {dtype}: {error}; use fp32.") from error
        log.info("16 bits from %.3f s of audio on", near)
        if near > self.shortest_seconds:
            noise = white_noise(near, self.sample_rate_hz).to(self.device)
            (self._fewest_frames,) = map(len, self._frontend.compute([noise]))
        else:
            self._forward_fp32 = self._forward
        self._shortest_in_16_bits = round(near, 3)

    def _refuse_lengths(self, shortest: float, longest: float, max_whole_seconds: float) -> None:
        """Raise UtteranceError if an utterance of a batch is too short, or too long for a network without chunks."""
        if shortest < LONGEST_SHORTEST_SECONDS and shortest < (least := self.shortest_seconds):
            raise UtteranceError(f"too short: {shortest:.3f} s, {self.architecture} needs {least:.3f} s")
        if longest > max_whole_seconds and self._chunked is None:
            raise UtteranceError(
                f"too long: {longest:.1f} s, and {self.architecture} has to see an utterance whole, up to "
                f"data.max_whole_seconds={max_whole_seconds:g} here; cut the file, or raise that where memory allows"
            )

    @cached_property
    def _chunked(self) -> ChunkedNetwork | None:
        with torch.inference_mode(), exact_kernels():
            return make_chunked(self._network, self._frontend.mels, verdicts=self._verdicts)
