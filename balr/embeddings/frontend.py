"""A network and the front end that it was trained with, as a checkpoint's config describes both."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from balr.config import FeaturesConfig
from balr.embeddings.architectures import build_network, build_tfmel
from balr.embeddings.fbank import fbank_settings, fbanks, frontend_name, stated
from balr.embeddings.weights import CheckpointConfig
from balr.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Frontend:
    """Compute features on the device of the waveforms `(samples,)`, one tensor each.

    `time_dim` is the dimension of the frames in a batch of features: 1 for `(batch, frames, mels)`. `settings` say how
    features are computed, for a record.
    """

    compute: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
    sample_rate_hz: int
    mels: int
    frames_per_second: float
    time_dim: int
    settings: Mapping[str, Any]


def build_with_frontend(config: CheckpointConfig, overrides: FeaturesConfig) -> tuple[torch.nn.Module, Frontend]:
    """Construct the network, without weights, and its front end. Raises CheckpointError or ConfigError."""
    if frontend_name(config.dataset_args) == "tfmel":
        return _with_tfmel(config, overrides)
    settings = fbank_settings(config.dataset_args, overrides)
    network = build_network(config.architecture, _sized(config, settings.num_mel_bins))
    frontend = Frontend(
        compute=lambda waveforms: fbanks(waveforms, settings, at_once=waveforms[0].device.type != "cpu"),
        sample_rate_hz=settings.sample_rate_hz,
        mels=settings.num_mel_bins,
        frames_per_second=1000 / settings.frame_shift_ms,
        time_dim=1,
        settings=asdict(settings),
    )
    return network, frontend


def _with_tfmel(config: CheckpointConfig, overrides: FeaturesConfig) -> tuple[torch.nn.Module, Frontend]:
    """Join a ReDimNet2 to its own front end, which normalises the waveform and subtracts the mean itself."""
    changed = [name for name, value in vars(overrides).items() if value is not None]
    if changed:
        raise ConfigError(
            f"features.{changed[0]}: has no effect on a tfmel checkpoint, which brings its own front end."
        )
    sample_rate_hz = stated(config.dataset_args, "resample_rate", 16_000, kind="sample_rate_hz")
    mels = stated(config.dataset_args, "tfmel_args.n_mels", 80, kind="num_mel_bins")
    hop = stated(config.dataset_args, "tfmel_args.hop_length", 160, kind="samples")
    for name, default in (("win_length", 400), ("n_fft", 512)):
        stated(config.dataset_args, f"tfmel_args.{name}", default, kind="samples")
    tfmel_args = {"sample_rate": sample_rate_hz, **(config.dataset_args.get("tfmel_args") or {})}
    tfmel = build_tfmel(tfmel_args)
    network = build_network(config.architecture, _sized(config, mels))
    if callable(prepare := getattr(network, "prepare_for_frontend", None)):
        prepare("tfmel")
    network.add_module("frontend", tfmel)  # its tables are part of published checkpoints

    def compute(waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.cuda.amp.autocast, which torch renamed
            return [tfmel(waveform.unsqueeze(0))[0][0] for waveform in waveforms]

    return network, Frontend(compute, sample_rate_hz, mels, sample_rate_hz / hop, time_dim=2, settings=tfmel_args)


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
