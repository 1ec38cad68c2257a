"""The configuration: where its tree is, the schema of a run, and the names that a run's results get.

Imports no torch: `--help`, `--cfg job` and `balr models` rest on this module alone.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from balr.errors import BalrError, ConfigError

_T = TypeVar("_T")
DOWNLOADED_FROM = ".downloaded-from"  # in a model_dir: the repository and revision of its files
_LONGEST_NAME_BYTES = 150
_SLASH_OR_QUOTE = "/'\""


@dataclass
class RunConfig:
    """Name and type every run-level key; values and explanations are in `conf/config.yaml`.

    Not frozen: OmegaConf takes a frozen schema as read-only and would refuse every override.
    """

    input: str = MISSING
    root_dir: str | None = MISSING
    audio_formats: list[str] = MISSING
    device: str = MISSING
    precision: str = MISSING
    force: bool = MISSING
    max_failures: Any = MISSING
    fail_fast: bool = MISSING
    save_output: bool = MISSING
    save_dir: str | None = MISSING
    vector_format: str = MISSING
    sweep_over: list[str] = MISSING
    embeddings: Any = MISSING
    data: Any = MISSING


@dataclass(frozen=True)
class DataConfig:
    """Say how utterances are loaded and put into batches; None leaves a choice to the device and the cores there are.

    `batch_size` utterances at most, of nearly equal length, go through the network at once, and `max_batch_seconds` of
    audio, padding included; `streams` batches are computed at a time. `num_workers` processes decode ahead (0: none),
    each at most `prefetch_factor` batches.
    `shuffle` takes batches in a drawn order, not the longest first. Audio longer than `chunk_seconds` goes through the
    network in parts of half that, where it does not change the embedding; where it would, audio longer than
    `max_whole_seconds` is refused. A file that holds more than `max_audio_seconds`, or that takes a process more than
    `decode_timeout_seconds`, is a failure. No choice here changes an embedding.
    """

    batch_size: int | None = None
    max_batch_seconds: float | None = None
    shuffle: bool = False
    streams: int | None = None
    num_workers: int | None = None
    prefetch_factor: int | None = None
    chunk_seconds: float = 20.0
    max_whole_seconds: float = 600.0
    max_audio_seconds: float = 14_400.0
    decode_timeout_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("streams", 1), ("num_workers", 0), ("prefetch_factor", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ConfigError(f"data.{name}={value}: must be a whole number, {least} or more.")
        seconds = (option.name for option in fields(self) if option.name.endswith("_seconds"))
        for name in seconds:
            value = getattr(self, name)
            if (value is not None or name != "max_batch_seconds") and (
                type(value) not in (int, float) or not value >= 1
            ):
                raise ConfigError(f"data.{name}={value}: must be a number, 1 or more.")
        if type(self.shuffle) is not bool:
            raise ConfigError(f"data.shuffle={self.shuffle}: must be true or false.")


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


@dataclass(frozen=True)
class PublishedCheckpoint:
    """Describe a checkpoint that ships as `conf/embeddings/model/<name>.yaml`; EERs are on VoxCeleb1-O, -E, -H."""

    name: str
    model_repo: str
    revision: str
    architecture: str
    embedding_dim: int
    parameters_millions: float
    trained_on: str
    eer_percent: tuple[float, ...] | None
    licence: str


def config_dir() -> Path:
    """Return the absolute path of the config tree: inside the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@cache
def published_checkpoints() -> Mapping[str, PublishedCheckpoint]:
    """Return the shipped checkpoints by repository id, ordered by name."""
    found = {}
    for path in sorted((config_dir() / "embeddings" / "model").glob("[!_]*.yaml")):
        for repo, facts in yaml.safe_load(path.read_text(encoding="utf-8"))["published"].items():
            eer = facts.pop("eer_percent")
            found[repo] = PublishedCheckpoint(
                name=path.stem, model_repo=repo, eer_percent=tuple(eer) if eer else None, **facts
            )
    return found


def pinned_revision(model_repo: str) -> str:
    """Return the revision that balr ships for a repository, `main` for one it does not know."""
    known = published_checkpoints().get(model_repo)
    return known.revision if known else "main"


def register() -> None:
    """Make the schema and the resolvers of `conf/` known to Hydra; calling it again changes nothing."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    OmegaConf.register_new_resolver("balr.corpus", corpus_name, replace=True)
    OmegaConf.register_new_resolver("balr.label", _label_of_this_job, replace=True)


def check(cfg: DictConfig) -> RunConfig:
    """Return the composed config as a checked `RunConfig`.

    Raises ConfigError that lists every missing value at once, or names the value that does not resolve.
    """
    missing = _missing_keys(OmegaConf.to_container(cfg, resolve=False))
    if missing:
        if missing == ["input"]:
            raise ConfigError(
                "Missing input: a csv, a folder, an audio file or a wav.scp, as in balr extract recordings/."
            )
        raise ConfigError(f"Missing {', '.join(missing)}: give each as KEY=VALUE.")
    run = OmegaConf.to_object(cfg)
    assert isinstance(run, RunConfig)
    if not run.input:
        raise ConfigError("input is empty: give a csv, a folder, an audio file or a wav.scp.")
    if run.vector_format not in ("npy", "txt"):
        raise ConfigError(f"vector_format={run.vector_format}: must be npy or txt.")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", run.device):
        raise ConfigError(f"device={run.device}: must be auto, cpu, cuda, cuda:N or mps.")
    if run.save_dir == "":
        raise ConfigError("save_dir is empty: give a folder, or save_dir=null to write beside the audio.")
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", str(run.max_failures)):
        raise ConfigError(f"max_failures={run.max_failures}: must be a number of utterances, or a share such as 1%.")
    return _in_a_sweep(run, cfg) if HydraConfig.get().mode == RunMode.MULTIRUN else run


def build(node: Mapping[str, Any], kind: type[_T], **arguments: object) -> _T:
    """Instantiate a `_target_` node that must be a `kind` defined in balr.

    Raises ConfigError where a target is anything else or does not take the node's keys: a config can come with a
    downloaded model or from a colleague, and must not name arbitrary code.
    """
    _check_targets(node, kind)
    try:
        made = instantiate({**node}, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, BalrError):
            raise cause from None
        if isinstance(cause, TypeError):
            raise ConfigError(f"{node['_target_']} does not take these settings: {cause}.") from error
        raise ConfigError(f"{node['_target_']}: {error}") from error
    assert isinstance(made, kind)
    return made


def _check_targets(node: Mapping[str, Any], kind: type) -> None:
    target = node.get("_target_")
    try:
        cls = resolve_name(target) if isinstance(target, str) and target.startswith("balr.") else None
    except (ImportError, AttributeError, ValueError):
        cls = None
    if not isinstance(cls, type) or not cls.__module__.startswith("balr.") or not issubclass(cls, kind):
        raise ConfigError(
            f"_target_={target}: not a class of balr that fits here ({kind.__name__}); see conf/ for those."
        )
    for child in _mappings_with_targets(list(node.values())):
        _check_targets(child, FeaturesConfig)


def _mappings_with_targets(nodes: Iterable[object]) -> Iterator[Mapping[str, Any]]:
    for node in nodes:
        if isinstance(node, Mapping) and "_target_" in node:
            yield node
        elif isinstance(node, Mapping):
            yield from _mappings_with_targets(node.values())
        elif isinstance(node, list | tuple | ListConfig):
            yield from _mappings_with_targets(node)


def corpus_name(path: str) -> str:
    """Name a corpus after its folder, or its list and the list's folder: `voxceleb2`, `voxceleb2-metadata`."""
    resolved = Path(os.path.realpath(os.path.expanduser(path)))
    if os.path.isdir(resolved):  # unlike Path's, it takes a name that is too long for any file
        return _as_folder_name(resolved.name or "root")
    return _as_folder_name(f"{resolved.parent.name}-{resolved.stem}")


def job_label(choice: str, overrides: Sequence[str], swept: Collection[str]) -> str:
    """Name what a job computes: its model, and whatever else changes the numbers or tells it from other jobs.

    The label is the config name of the model, or its repository where that was overridden, then the other overrides
    below `embeddings.` and those that a sweep varies.
    """
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        value = value.strip(_SLASH_OR_QUOTE)
        if key == "embeddings.model.model_repo":
            known = published_checkpoints().get(value)
            choice = known.name if known else value.replace("/", "--")
        elif (
            (key == "precision" and value != "fp32")
            or key.startswith("embeddings.")
            or (key in swept and key not in ("input", "save_dir", "embeddings/model"))
        ):
            parts.append(f"{key.removeprefix('embeddings.model.')}={value}")
    return _as_folder_name(",".join([choice, *sorted(parts)]))


def _missing_keys(node: object, prefix: str = "") -> list[str]:
    if node == MISSING:
        return [prefix]
    children = node.items() if isinstance(node, dict) else ()
    return [key for name, child in children for key in _missing_keys(child, f"{prefix}.{name}".lstrip("."))]


def _label_of_this_job(*, _root_: DictConfig) -> str:
    if not HydraConfig.initialized():  # composed in a notebook or a test
        return job_label("", [f"embeddings.model.model_repo={_root_.embeddings.model.model_repo}"], ())
    hydra = HydraConfig.get()
    from_yaml = hydra.sweeper.get("params") or {}
    swept = {*_root_.sweep_over, *(key.lstrip("+") for key in from_yaml)}
    return job_label(hydra.runtime.choices["embeddings/model"], hydra.overrides.task, swept)


def _in_a_sweep(run: RunConfig, cfg: DictConfig) -> RunConfig:
    """Give the job a folder of its own below a save_dir that is the same for the whole sweep."""
    if run.save_dir is None:
        raise ConfigError("save_dir=null in a sweep: jobs would overwrite one another's embeddings beside the audio.")
    as_written = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(as_written, dict)
    if "${balr.label" not in as_written["save_dir"]:
        run.save_dir = str(Path(run.save_dir) / corpus_name(run.input) / _label_of_this_job(_root_=cfg))
    return run


def _as_folder_name(text: str) -> str:
    name = re.sub(r"[^\w=,+@.-]+", "-", text).strip("-.") or "unnamed"
    if len(name.encode()) <= _LONGEST_NAME_BYTES:
        return name
    start = name.encode()[:_LONGEST_NAME_BYTES].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"
