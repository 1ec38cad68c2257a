"""`WespeakerModel`: a published WeSpeaker checkpoint as an embeddings model."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from balr.config import FeaturesConfig
from balr.embeddings.architectures import build_network, build_tfmel, run_network
from balr.embeddings.base import EmbeddingsModel, select_device
from balr.embeddings.checkpoint import CheckpointConfig, find_checkpoint, load_weights, read_config
from balr.embeddings.chunks import Trunk, cuttable
from balr.embeddings.fbank import fbank, fbank_settings, frontend_name
from balr.embeddings.folding import fold
from balr.errors import CheckpointError, ConfigError, UtteranceError

log = logging.getLogger(__name__)

_LONGEST_SHORTEST_SECONDS = 1.0
_EXAMPLE_SECONDS = 0.7


class WespeakerModel(EmbeddingsModel):
    """Load a checkpoint and embed waveforms with it, as WeSpeaker's recipe does for each utterance alone.

    `model_dir` is where the model's files are downloaded to (None: the Hub's own cache); a folder that already holds
    them needs no network. `features` overrides what the checkpoint's config says. `revision` None: the pinned revision
    of a checkpoint that ships with balr, else `main`. Raises CheckpointError or ConfigError.
    """

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
    ) -> None:
        self.device = select_device(device)
        self.files = find_checkpoint(
            model_repo, model_name, config_name=config_name, model_dir=model_dir, revision=revision
        )
        config = read_config(self.files.config)
        self.architecture = config.architecture
        try:
            network, self._features, self.sample_rate_hz = _network_and_frontend(config, features)
        except CheckpointError as error:
            raise CheckpointError(f"{self.files.config}: {error}") from error
        load_weights(network, self.files.weights)
        example = self._features(_noise(_EXAMPLE_SECONDS, self.sample_rate_hz)).unsqueeze(0)
        fold(network, example)
        self._network = _channels_last(network.to(self.device))
        log.info("%s from %s on %s", self.architecture, self.files.source, self.device)

    def embed(self, waveforms: Sequence[torch.Tensor], *, chunk_seconds: float | None = None) -> torch.Tensor:
        """Embed waveforms `(samples,)` in [-1, 1] to `(batch, dim)`, float32 on the CPU, each as if it were alone.

        A waveform longer than `chunk_seconds` goes through the network in parts where its architecture allows that
        without changing the embedding. Raises UtteranceError where one is shorter than the architecture can embed.
        """
        longest = None if chunk_seconds is None else int(chunk_seconds * self.sample_rate_hz)
        rows = []
        for waveform in waveforms:
            try:
                row = self._embed_one_waveform(waveform, longest)
                usable = bool(row.isfinite().all())
            except (RuntimeError, IndexError):  # a convolution wider than its input
                if not self._is_short(waveform):
                    raise
                usable = False
            if not usable and self._is_short(waveform):
                seconds = waveform.numel() / self.sample_rate_hz
                raise UtteranceError(
                    f"too short: {seconds:.3f} s, {self.architecture} needs {self.shortest_seconds:.3f} s"
                )
            rows.append(row)
        return torch.stack(rows)

    @cached_property
    def shortest_seconds(self) -> float:
        """Find the shortest audio that this network can embed, by trying noise frame by frame."""
        noise = _noise(_LONGEST_SHORTEST_SECONDS, self.sample_rate_hz)
        step = self.sample_rate_hz // 200
        lengths = range(step, noise.numel() + 1, step)
        low, high = 0, len(lengths) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._can_embed(noise[: lengths[middle]]) else (middle + 1, high)
        return lengths[low] / self.sample_rate_hz

    def _can_embed(self, waveform: torch.Tensor) -> bool:
        try:
            return bool(self._embed_one_waveform(waveform).isfinite().all())
        except (RuntimeError, IndexError, UtteranceError):
            return False

    def _is_short(self, waveform: torch.Tensor) -> bool:
        return waveform.numel() < self.shortest_seconds * self.sample_rate_hz

    @torch.inference_mode()
    def _embed_one_waveform(self, waveform: torch.Tensor, longest_samples: int | None = None) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the variance of a single frame; the result is checked
            features = self._features(waveform).unsqueeze(0).to(self.device)
            if longest_samples and waveform.numel() > longest_samples and self._trunk is not None:
                frames = features.shape[1] * longest_samples // waveform.numel()
                return self._trunk.embed(features, chunk_frames=frames)[0].cpu()
            return run_network(self._network, features)[0].cpu()

    @cached_property
    def _trunk(self) -> Trunk | None:
        """Return the network as one that takes long utterances in parts, or None where it has to see them whole."""
        trunk = None if "frontend" in dict(self._network.named_children()) else self._cuttable()
        if trunk is None:
            log.warning("%s sees an utterance whole: memory grows with the length of the audio", self.architecture)
        return trunk

    def _cuttable(self) -> Trunk | None:
        mels = self._features(_noise(_EXAMPLE_SECONDS, self.sample_rate_hz)).shape[-1]
        return cuttable(self._network, mels)


Frontend = Callable[[torch.Tensor], torch.Tensor]


def _network_and_frontend(config: CheckpointConfig, overrides: FeaturesConfig) -> tuple[torch.nn.Module, Frontend, int]:
    if frontend_name(config.dataset_args) == "tfmel":
        return _with_tfmel(config, overrides)
    settings = fbank_settings(config.dataset_args, overrides)
    network = build_network(config.architecture, _sized(config, settings.num_mel_bins))
    return network, lambda waveform: fbank(waveform, settings), settings.sample_rate_hz


def _with_tfmel(config: CheckpointConfig, overrides: FeaturesConfig) -> tuple[torch.nn.Module, Frontend, int]:
    """Join a ReDimNet2 to its own front end, which normalises the waveform and subtracts the mean itself."""
    changed = [name for name, value in vars(overrides).items() if value is not None]
    if changed:
        raise ConfigError(
            f"features.{changed[0]}: has no effect on a tfmel checkpoint, which brings its own front end."
        )
    sample_rate_hz = config.dataset_args.get("resample_rate", 16_000)
    tfmel_args = {"sample_rate": sample_rate_hz, **(config.dataset_args.get("tfmel_args") or {})}
    frontend = build_tfmel(tfmel_args)
    network = build_network(config.architecture, _sized(config, tfmel_args.get("n_mels", 80)))
    if callable(prepare := getattr(network, "prepare_for_frontend", None)):
        prepare("tfmel")
    network.add_module("frontend", frontend)  # its tables are part of published checkpoints

    def features(waveform: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.cuda.amp.autocast, which torch renamed
            made: torch.Tensor = frontend(waveform.unsqueeze(0))[0][0]
        return made

    return network, features, sample_rate_hz


def _channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """Lay out the weights of two-dimensional convolutions as their fast implementations want them."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _noise(seconds: float, sample_rate_hz: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(int(seconds * sample_rate_hz), generator=generator) * 0.1


def _sized(config: CheckpointConfig, mels: int) -> Mapping[str, Any]:
    """Return the network's arguments, with the number of mel bins where the config leaves it out."""
    name = "acoustic_dim" if config.architecture.startswith("SimAM_ResNet") else "feat_dim"
    stated = config.model_args.get(name, mels)
    if stated != mels:
        raise CheckpointError(
            f"{config.architecture} was made for {name}={stated}, but the features have {mels} mel bins; "
            f"set embeddings.model.features.num_mel_bins={stated}, or leave it to the checkpoint."
        )
    return {**config.model_args, name: mels}
