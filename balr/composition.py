"""From Hydra's composed config to a checked one: what Hydra knows, what is refused, how results are named.

Imports no torch: a wrong command is refused before anything heavy loads.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

from balr.checkpoints import files_in, published_checkpoints, published_names
from balr.config import EvaluationConfig, RunConfig, demo_checkpoint, flat, known_keys
from balr.errors import CheckpointError, ConfigError

_T = TypeVar("_T")
_LONGEST_NAME_BYTES = 150
_MODEL = "embeddings.model."
_NAMES_NO_VARIANT = (
    *("embeddings/model", "input", "save_dir", "save_output", "force", "max_failures", "fail_fast"),
    *("evaluation", "evaluation.trials", "evaluation.bootstrap", "evaluation.scores", "evaluation.allow_missing"),
)

_NO_VARIANT = {"precision": "fp32", "channel": "null"}
_WORTH_COMPILING = 500  # utterances, which take minutes; compiling takes seconds


def register() -> None:
    """Register the schema and the resolvers of `conf/` with Hydra; calling it again changes nothing."""
    schema = OmegaConf.structured(RunConfig)
    for frozen in (schema.data, schema.shard, schema.embeddings.model.features):
        OmegaConf.set_readonly(frozen, None)  # frozen in Python, but not for overrides
    ConfigStore.instance().store(name="run_schema", node=schema)
    OmegaConf.register_new_resolver("balr.corpus", corpus_name, replace=True)
    OmegaConf.register_new_resolver("balr.demo_checkpoint", lambda: str(demo_checkpoint()), replace=True)
    OmegaConf.register_new_resolver("balr.label", _label_of_this_job, replace=True)
    OmegaConf.register_new_resolver("balr.array_index", _array_index, replace=True)


def check(cfg: DictConfig) -> RunConfig:
    """Return the composed config as a checked `RunConfig`.

    Raises ConfigError that lists all missing values, or names the key that is unknown or has a wrong value.
    """
    leaves, known = flat(OmegaConf.to_container(cfg, resolve=False)), {"evaluation", *known_keys()}
    missing = [key for key, value in leaves.items() if value == MISSING]
    if missing == ["input"]:
        raise ConfigError("Missing input: a csv, a folder, an audio file or a wav.scp, as in balr extract recordings/.")
    if missing:
        raise ConfigError(f"Missing {', '.join(missing)}: give each as KEY=VALUE.")
    for key in leaves:
        if key not in known and not key.startswith("store."):  # whose constructor knows its keys
            raise ConfigError(f"{key}: no such key; --cfg job shows all keys.")
    take_local_checkpoint(cfg.embeddings.model, _overrides())
    run = cast(RunConfig, OmegaConf.to_object(cfg))
    run.embeddings, run.store = cfg.embeddings, cfg.store  # nodes, which `build` instantiates
    legal = {
        "input": (run.input, "a csv, a folder, an audio file or a wav.scp"),
        "audio_formats": (all(isinstance(one, str) for one in run.audio_formats), "suffixes, such as [wav,flac]"),
        "vector_format": (run.vector_format in ("npy", "txt"), "npy or txt"),
        "device": (re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", run.device), "auto, cpu, cuda, cuda:N or mps"),
        "save_dir": (run.save_dir != "", "a folder, or null to write beside the audio"),
        "max_failures": (
            re.fullmatch(r"\d+|\d+(\.\d+)?%", str(run.max_failures)),
            "a number of utterances, or a share such as 1%",
        ),
    }
    for key, (is_legal, expected) in legal.items():
        if not is_legal:
            raise ConfigError(f"{key}={getattr(run, key)}: must be {expected}.")
    if run.reuse_beside and (run.force or not run.save_dir or not run.save_output):
        raise ConfigError("reuse_beside=true: takes embeddings over into a save_dir, and not with force=true.")
    if run.evaluation is not None:
        _check_evaluation(run, run.evaluation)
    return _in_a_sweep(run, _label_of_this_job(_root_=cfg)) if HydraConfig.get().mode == RunMode.MULTIRUN else run


def _check_evaluation(run: RunConfig, evaluation: EvaluationConfig) -> None:
    """Raise ConfigError for what would only be found out after the run."""
    if not (run.save_output and run.save_dir) or run.shard.tag:
        raise ConfigError(
            "evaluation: needs a save_dir, save_output=true and no shards; balr merge, then balr evaluate."
        )
    for key in ("trials", "cohort", "enrollment_map"):
        path = getattr(evaluation, key)
        if path is not None and not os.path.lexists(os.path.expanduser(path)):
            raise ConfigError(f"evaluation.{key}={path}: no such file or folder.")


def build(node: Mapping[str, Any], kind: type[_T], **arguments: object) -> _T:
    """Instantiate a `_target_` node that must be a `kind` of balr's own. Raises ConfigError if it is anything else.

    A config may come with a downloaded model or from a colleague, and must not run arbitrary code.
    """
    target = str(node["_target_"])
    try:
        cls = resolve_name(target) if target.startswith("balr.") else None
    except (ImportError, AttributeError, ValueError):
        cls = None
    if not isinstance(cls, type) or not cls.__module__.startswith("balr.") or not issubclass(cls, kind):
        raise ConfigError(f"_target_={target}: not a class of balr that fits here ({kind.__name__}); see conf/.")
    plain = {key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in node.items()}
    del plain["_target_"]
    try:
        signature(cls).bind(**plain, **arguments)
    except TypeError as error:
        known = [name for name in signature(cls).parameters if name not in arguments]
        raise ConfigError(f"{cls.__name__} {error}; it has {', '.join(known) or 'none'}.") from error
    return cls(**plain, **arguments)


def settle_engine(cfg: RunConfig, utterances: int, *, begun_with: str | None = None) -> None:
    """Put an engine in the place of `auto`: that of the folder's embeddings, else torch for little work.

    For much work it stays `auto`, which the model decides as it loads. All shards go by the size of the whole corpus.
    """
    model = cfg.embeddings["model"]
    if model.get("engine") == "auto" and (begun_with or utterances < _WORTH_COMPILING):
        model["engine"] = begun_with or "torch"


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
    return _as_folder_name(["-".join(parts)])


def job_label(choice: str, overrides: Iterable[str], *, is_sweep: bool) -> str:
    """Name what a job computes by its model and the overrides that change it, as in `campplus_lm+precision-bf16`.

    The model is named by its config, or by its repository or folder if only that was given. In a sweep, all overrides
    that can differ between jobs are part of the name.
    """
    given = _by_key(overrides)
    is_named = "embeddings/model" in given
    for key, label in ((f"{_MODEL}model_repo", _repository_label), (f"{_MODEL}model_dir", _folder_label)):
        value = given.pop(key, "")
        if value not in ("", "null") and is_named:
            given[key] = label(value)
        elif value not in ("", "null"):
            choice, is_named = label(value), True
    # Shards of one corpus share a folder, also where each has a device of its own.
    shared = {*_NAMES_NO_VARIANT, "device"} if "shard.count" in given else _NAMES_NO_VARIANT
    variants = [
        f"{key.removeprefix(_MODEL)}-{value}"
        for key, value in sorted(given.items())
        if key.startswith(("embeddings.", "experiment"))
        or _NO_VARIANT.get(key, value) != value
        or (is_sweep and key not in shared and not key.startswith(("hydra", "shard")))
    ]
    return _as_folder_name([choice, *variants], distinct=True)


def _repository_label(repo: str) -> str:
    return published_checkpoints().get(repo, {}).get("name", repo.replace("/", "--"))


def _folder_label(folder: str) -> str:
    """Name a checkpoint by its folder; a hash of the path if that name could be another's."""
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    is_only_one = path.parent == Path.cwd() and path.name not in published_names()
    return path.name if is_only_one else f"{path.name}-{_digest(str(path))}"


def _overrides() -> list[str]:
    """Return the overrides of this job as they were typed."""
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(override) for override in typed or ()]


def _by_key(overrides: Iterable[str]) -> dict[str, str]:
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value.strip("'\"") for key, _, value in pairs}


def _label_of_this_job(*, _root_: DictConfig) -> str:
    if not HydraConfig.initialized():  # composed in a notebook or a test
        return job_label("", [f"{_MODEL}model_repo={_root_.embeddings.model.model_repo}"], is_sweep=False)
    hydra = HydraConfig.get()
    is_sweep = hydra.mode == RunMode.MULTIRUN
    return job_label(hydra.runtime.choices["embeddings/model"], _overrides(), is_sweep=is_sweep)


def take_local_checkpoint(model: DictConfig, overrides: Iterable[str]) -> None:
    """Take the files of `model_dir` under any names, unless the command names a model. Raises CheckpointError.

    A folder without files that has no name of a model is mistyped: the default model would be downloaded to it.
    """
    given = _by_key(overrides)
    if not model.model_dir or (model.model_repo and {"embeddings/model", f"{_MODEL}model_repo"} & given.keys()):
        return
    folder, names = Path(model.model_dir).expanduser(), (model.model_name, model.config_name)
    is_named = {f"{_MODEL}model_name", f"{_MODEL}config_name"} & given.keys()
    is_there = folder.is_dir() and any(folder.iterdir())
    found = names if is_there and (is_named or all((folder / name).is_file() for name in names)) else files_in(folder)
    if found is not None:
        model.model_repo, (model.model_name, model.config_name) = "", found
    elif model.model_repo and f"{_MODEL}model_dir" in given:
        raise CheckpointError(f"{folder}: no such checkpoint; embeddings/model=NAME would download one to it.")


def _in_a_sweep(run: RunConfig, label: str) -> RunConfig:
    """Give each job a folder of its own, also below a `save_dir` that is the same for all."""
    if run.save_dir is None:
        raise ConfigError("save_dir=null in a sweep: jobs would overwrite one another's embeddings beside the audio.")
    folder = Path(run.save_dir)
    run.save_dir = str(folder.joinpath(*(name for name in (corpus_name(run.input), label) if name not in folder.parts)))
    return run


def _as_folder_name(parts: Sequence[str], *, distinct: bool = False) -> str:
    """Join parts to a name without special characters; if `distinct`, a hash stands for the replaced ones."""
    text = "+".join(parts)
    name = "+".join(re.sub(r"[^\w@.-]+", "-", part) for part in parts).strip("-.") or "unnamed"
    if len(name.encode()) <= _LONGEST_NAME_BYTES and (name == text or not distinct):
        return name
    return f"{name.encode()[:_LONGEST_NAME_BYTES].decode(errors='ignore')}-{_digest(repr(parts))}"


def _array_index(task: str, first: str, step: str) -> int:
    return (int(task) - int(first)) // int(step)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
