"""The schema of a run, with the types and ranges of all settings, and the folder of the config tree. No torch here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING, OmegaConf

from balr.errors import ConfigError
from balr.records import Shard

WINDOWS = ("hamming", "hanning", "povey", "rectangular", "blackman")  # as torchaudio.compliance.kaldi names them
_RANGES = {
    "sample_rate_hz": (4_000, 384_000),
    "num_mel_bins": (4, 512),
    "frame_length_ms": (1, 1_000),
    "frame_shift_ms": (1, 1_000),
    "samples": (1, 4_096),
}


@dataclass(frozen=True)
class DataConfig:
    """Choose how utterances are loaded and batched; no choice changes an embedding.

    None leaves a choice to the device and the number of cores.

    `batch_size`: utterances that go through the network at once, of nearly equal length; `max_batch_seconds`: audio in
    such a batch, padding included. `shuffle`: batches in a random order, not the longest first. `concurrent_batches`:
    batches computed at a time. `num_workers`: processes that decode (0: this process, which a broken file may crash);
    `prefetch_factor`: batches decoded ahead for each of them.

    Audio longer than `chunk_seconds`, with OpenVINO than three times that, on a GPU than ten times, goes through the
    network in chunks of half that where this gives the same embedding; elsewhere, audio longer than `max_whole_seconds`
    fails.
    `max_ahead_seconds` limits the audio that is decoded and not embedded yet, except for one batch that is longer by
    itself. A file that holds more than `max_audio_seconds`, or takes a process longer than `decode_timeout_seconds` to
    decode, fails.
    """

    batch_size: int | None = None
    max_batch_seconds: float | None = None
    shuffle: bool = False
    concurrent_batches: int | None = None
    num_workers: int | None = None
    prefetch_factor: int | None = None
    chunk_seconds: float = 20.0
    max_whole_seconds: float = 600.0
    max_audio_seconds: float = 14_400.0
    max_ahead_seconds: float = 14_400.0
    decode_timeout_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(DataConfig).items():
            value, least = getattr(self, name), 0 if name in ("num_workers", "shuffle") else 1
            if not isinstance(value, kind | int) or (value is not None and not value >= least):
                number = "number" if name.endswith("_seconds") else "whole number"
                raise ConfigError(f"data.{name}={value}: must be a {number}, {least} or more.")


@dataclass(frozen=True)
class FeaturesConfig:
    """Override feature settings of a checkpoint; None keeps what its own config.yaml says.

    `int16_scale`: multiply the waveform by 32768 first, as WeSpeaker's models expect; models of 3D-Speaker want
    `int16_scale=False` and `window_type="povey"`. `mean_norm`: subtract the mean over the utterance's own frames.
    """

    sample_rate_hz: int | None = None
    num_mel_bins: int | None = None
    frame_length_ms: float | None = None
    frame_shift_ms: float | None = None
    window_type: str | None = None
    int16_scale: bool | None = None
    mean_norm: bool | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (legal := legal_feature(name, value)):
                raise ConfigError(f"features.{name}={value}: must be {legal}.")


@dataclass
class EvaluationConfig:
    """Choose how embeddings are scored and judged.

    `trials`: a list of trials; None for all pairs of utterances, where they have speakers. `mean`: what is subtracted
    from embeddings, the mean of those of the trials' own folder (`self`), of another SAVE_DIR or file, or `none`.
    `cohort`: the SAVE_DIR of other speakers, for AS-norm with the `top_n` nearest. `enrollment_map`: models of several
    utterances, which are averaged as they are (`enrollment=mean`) or divided by their length (`mean_of_unit`).
    `allow_missing`: leave out trials of ids without an embedding. `bootstrap`: draws of speakers for intervals, 0 for
    none. `scores`: csv, parquet or none; None for csv up to a million trials. `out`: where results go; None for a
    folder in `evaluation` of the SAVE_DIR.
    """

    trials: str | None = None
    mean: str = "self"
    cohort: str | None = None
    top_n: int = 300
    enrollment_map: str | None = None
    enrollment: str = "mean"
    allow_missing: bool = False
    bootstrap: int = 200
    scores: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        for name, legal in (("enrollment", ("mean", "mean_of_unit")), ("scores", (None, "csv", "parquet", "none"))):
            if getattr(self, name) not in legal:
                raise ConfigError(
                    f"evaluation.{name}={getattr(self, name)}: must be one of {', '.join(filter(None, legal))}."
                )
        if self.top_n < 2 or self.bootstrap < 0:
            raise ConfigError("evaluation: top_n must be 2 or more, and bootstrap 0 or more.")


@dataclass
class ModelConfig:
    """Name and type every setting of a model; values are in `conf/embeddings/model/`."""

    _target_: str = MISSING
    model_repo: str = MISSING
    model_name: str = MISSING
    config_name: str = MISSING
    model_dir: str | None = MISSING
    revision: str | None = MISSING
    engine: str = MISSING
    features: FeaturesConfig = field(default_factory=FeaturesConfig)


@dataclass
class EmbeddingsConfig:
    """The part of the tree below `embeddings`."""

    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class RunConfig:
    """Name and type every run-level key; values and explanations are in `conf/config.yaml`."""

    input: str = MISSING
    root_dir: str | None = MISSING
    audio_formats: list[str] = MISSING
    channel: int | None = MISSING
    device: str = MISSING
    precision: str = MISSING
    force: bool = MISSING
    reuse_beside: bool = MISSING
    max_failures: Any = MISSING
    fail_fast: bool = MISSING
    save_output: bool = MISSING
    save_dir: str | None = MISSING
    vector_format: str = MISSING
    embeddings: Any = field(default_factory=EmbeddingsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    store: Any = MISSING
    shard: Shard = field(default_factory=Shard)
    evaluation: EvaluationConfig | None = None


def flat(node: object, prefix: str = "") -> dict[str, object]:
    """Return the leaves of a nested dict by their dotted keys."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {key: leaf for name, child in node.items() for key, leaf in flat(child, f"{prefix}{name}.").items()}


def known_keys() -> list[str]:
    """Return the dotted keys of all settings."""
    schema = OmegaConf.structured(RunConfig(evaluation=EvaluationConfig()))
    return list(flat(OmegaConf.to_container(schema)))


def legal_feature(name: str, value: object) -> str | None:
    """Return what a setting of the features must be, or None if the value is legal."""
    if name == "window_type":
        return None if value in WINDOWS else f"one of {', '.join(WINDOWS)}"
    if name not in _RANGES:
        return None if type(value) is bool else "true or false"
    least, most = _RANGES[name]
    whole = not name.endswith("_ms")
    if isinstance(value, int if whole else int | float) and type(value) is not bool and least <= value <= most:
        return None
    return f"a {'whole ' if whole else ''}number from {least:,} to {most:,}"


def config_dir() -> Path:
    """Return the absolute path of the config tree: inside the package (wheel) or beside it (checkout)."""
    return _shipped("conf", "conf")


def demo_checkpoint() -> Path:
    """Return the folder of the checkpoint that ships with balr: inside the package (wheel) or beside it (checkout)."""
    return _shipped("demo_checkpoint", "resources/demo/checkpoint")


def groups() -> list[str]:
    """Return the groups of the config tree, of which one config is chosen by its name."""
    root = config_dir()
    return sorted({path.parent.relative_to(root).as_posix() for path in root.glob("*/**/*.yaml")})


def _shipped(inside: str, beside: str) -> Path:
    package = Path(__file__).resolve().parent
    return package / inside if (package / inside).is_dir() else package.parent / beside
