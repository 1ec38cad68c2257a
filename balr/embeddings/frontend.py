"""The network of a checkpoint and the front end it was trained with: fbank, or ReDimNet2's own `tfmel`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from balr.config import FeaturesConfig
from balr.embeddings.architectures import build_network, build_tfmel
from balr.embeddings.fbank import fbank_settings, fbanks, stated
from balr.embeddings.weights import CheckpointConfig
from balr.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Frontend:
    """Hold how features are computed: `compute` turns waveforms `(samples,)` into features `(frames, mels)`, each.

    They are on the same device. `settings` is for the record of a run.
    """

    compute: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
    sample_rate_hz: int
    mels: int
    frames_per_second: float
    settings: Mapping[str, Any]


def build_with_frontend(config: CheckpointConfig, overrides: FeaturesConfig) -> tuple[torch.nn.Module, Frontend]:
    """Construct the network, without weights, and its front end. Raises CheckpointError or ConfigError."""
    name = config.dataset_args.get("frontend", "fbank")
    if name == "tfmel":
        return _with_tfmel(config, overrides)
    if name != "fbank":
        raise CheckpointError(
            f"the front end {name} is not supported; balr runs fbank and tfmel checkpoints, "
            "not those on WavLM, W2V-BERT or Whisper."
        )
    settings = fbank_settings(config.dataset_args, overrides)
    network = build_network(config.architecture, _sized(config, settings.num_mel_bins))
    frontend = Frontend(
        compute=lambda waveforms: fbanks(waveforms, settings, at_once=waveforms[0].device.type != "cpu"),
        sample_rate_hz=settings.sample_rate_hz,
        mels=settings.num_mel_bins,
        frames_per_second=1000 / settings.frame_shift_ms,
        settings=asdict(settings),
    )
    return network, frontend


def _with_tfmel(config: CheckpointConfig, overrides: FeaturesConfig) -> tuple[torch.nn.Module, Frontend]:
    """Construct a ReDimNet2 and its front end, which normalises the waveform and subtracts the mean itself."""
    changed = [name for name, value in vars(overrides).items() if value is not None]
    if changed:
        raise ConfigError(f"features.{changed[0]}: has no effect on a tfmel checkpoint, which has its own front end.")
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

    # torch.cuda.amp.autocast was renamed; threads compute at a time, so a filter cannot come and go.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"wespeaker\.frontend\.tfmel")

    def compute(waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tfmel(waveform.unsqueeze(0))[0][0].T for waveform in waveforms]

    return network, Frontend(compute, sample_rate_hz, mels, sample_rate_hz / hop, tfmel_args)


def _sized(config: CheckpointConfig, mels: int) -> Mapping[str, Any]:
    """Return the network's arguments with the number of mel bins, which a config may leave out."""
    name = "acoustic_dim" if config.architecture.startswith("SimAM_ResNet") else "feat_dim"
    expected = config.model_args.get(name, mels)
    if expected != mels:
        raise CheckpointError(
            f"{config.architecture} was trained with {name}={expected}, but the features have {mels} mel bins; "
            f"set embeddings.model.features.num_mel_bins={expected}, or leave it to the checkpoint."
        )
    return {**config.model_args, name: mels}
