"""From Hydra's composed config to a checked one: what is known to Hydra, what is refused, how results are named.

Imports no torch: whatever is wrong with a command is told before anything heavy loads.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType, NoneType
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from balr.checkpoints import published_checkpoints
from balr.config import FeaturesConfig, RunConfig
from balr.errors import BalrError, ConfigError

_T = TypeVar("_T")
_TEXT, _TEXT_OR_NULL, _MAPPING = (str,), (str, NoneType), (dict,)
_MODEL_SETTINGS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "_target_": _TEXT,
        "model_repo": _TEXT_OR_NULL,
        "model_name": _TEXT,
        "config_name": _TEXT,
        "model_dir": _TEXT_OR_NULL,
        "revision": _TEXT_OR_NULL,
        "features": _MAPPING,
    }
)
_MAY_BE_ABSENT = ("model_dir", "revision", "features")
_KINDS = MappingProxyType({_TEXT: "text", _TEXT_OR_NULL: "text or null", _MAPPING: "a mapping"})
_LONGEST_NAME_BYTES = 150
_SLASH_OR_QUOTE = "/'\""


def register() -> None:
    """Make the schema and the resolvers of `conf/` known to Hydra; calling it again changes nothing."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    OmegaConf.register_new_resolver("balr.corpus", corpus_name, replace=True)
    OmegaConf.register_new_resolver("balr.label", _label_of_this_job, replace=True)


def check(cfg: DictConfig) -> RunConfig:
    """Return the composed config as a checked `RunConfig`.

    Raises ConfigError that lists every missing value at once, or names the value that cannot be.
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
    if not all(isinstance(name, str) for name in run.audio_formats):
        raise ConfigError(f"audio_formats={run.audio_formats}: must be suffixes of files, such as [wav,flac].")
    if run.vector_format not in ("npy", "txt"):
        raise ConfigError(f"vector_format={run.vector_format}: must be npy or txt.")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", run.device):
        raise ConfigError(f"device={run.device}: must be auto, cpu, cuda, cuda:N or mps.")
    if run.save_dir == "":
        raise ConfigError("save_dir is empty: give a folder, or save_dir=null to write beside the audio.")
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", str(run.max_failures)):
        raise ConfigError(f"max_failures={run.max_failures}: must be a number of utterances, or a share such as 1%.")
    _check_model(run.embeddings.get("model") if isinstance(run.embeddings, dict) else run.embeddings)
    return _in_a_sweep(run, cfg) if HydraConfig.get().mode == RunMode.MULTIRUN else run


def _check_model(model: object) -> None:
    """Refuse what is no description of a model. Raises ConfigError."""
    if isinstance(model, str):
        raise ConfigError(f"embeddings.model={model}: a model is chosen with a slash: embeddings/model={model}.")
    if not isinstance(model, dict):
        raise ConfigError("embeddings.model: must be a mapping; embeddings/model=NAME chooses one, see balr models.")
    for name, kinds in _MODEL_SETTINGS.items():
        if name not in model:
            if name not in _MAY_BE_ABSENT:
                raise ConfigError(f"embeddings.model.{name} is missing: a model cannot do without it.")
        elif not isinstance(model[name], kinds):
            quotes = " (a number is text in quotes)" if str in kinds and isinstance(model[name], int | float) else ""
            raise ConfigError(f"embeddings.model.{name}={model[name]}: must be {_KINDS[kinds]}{quotes}.")
    if not model["_target_"].startswith("balr."):
        raise _no_class(model["_target_"], "EmbeddingsModel")
    if "features" in model:
        build(model["features"], FeaturesConfig)


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
    target = node.get("_target_") if isinstance(node, Mapping) else None
    try:
        cls = resolve_name(target) if isinstance(target, str) and target.startswith("balr.") else None
    except (ImportError, AttributeError, ValueError):
        cls = None
    if not isinstance(cls, type) or not cls.__module__.startswith("balr.") or not issubclass(cls, kind):
        raise _no_class(target, kind.__name__)
    flags = [name for name in node if str(name).startswith("_") and name != "_target_"]
    if flags:
        raise ConfigError(f"{flags[0]}: refused beside _target_={target}: how a class is called is not for configs.")
    for child in _mappings_with_targets(list(node.values())):
        _check_targets(child, FeaturesConfig)


def _no_class(target: object, kind: str) -> ConfigError:
    return ConfigError(f"_target_={target}: not a class of balr that fits here ({kind}); see conf/ for those.")


def _mappings_with_targets(nodes: Iterable[object]) -> Iterator[Mapping[str, Any]]:
    for node in nodes:
        if isinstance(node, Mapping) and "_target_" in node:
            yield node
        elif isinstance(node, Mapping):
            yield from _mappings_with_targets(node.values())
        elif isinstance(node, list | tuple | ListConfig):
            yield from _mappings_with_targets(node)


def corpus_name(path: str) -> str:
    """Name a corpus after its path below the current folder, `A-wav`, or else after its last two parts.

    A list goes without its suffix, so `voxceleb2/metadata.csv` is `voxceleb2-metadata`; one in the current folder is
    named after that, too.
    """
    resolved, here = Path(os.path.realpath(os.path.expanduser(path))), Path(os.path.realpath(os.curdir))
    is_folder = os.path.isdir(resolved)  # unlike Path's, it takes a name that is too long for any file
    whole = resolved if is_folder else resolved.with_suffix("")
    below = whole.relative_to(here).parts if whole.is_relative_to(here) else ()
    parts = below if len(below) >= (1 if is_folder else 2) else whole.parts[1:][-2:]
    return _as_folder_name("-".join(parts) or "root")


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
