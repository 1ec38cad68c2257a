"""Find a checkpoint's two files, in a local folder or on the Hugging Face Hub, and read them without running code."""

import logging
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
import yaml

from balr.config import DOWNLOADED_FROM, pinned_revision
from balr.errors import CheckpointError, one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointFiles:
    """Locate the weights and the training config of a checkpoint, and say in words where they came from."""

    weights: Path
    config: Path
    source: str


@dataclass(frozen=True)
class CheckpointConfig:
    """Hold what a WeSpeaker config.yaml says about the network and its features."""

    architecture: str
    model_args: Mapping[str, Any]
    dataset_args: Mapping[str, Any]


def find_checkpoint(
    model_repo: str, model_name: str, *, config_name: str, model_dir: str | Path | None, revision: str | None
) -> CheckpointFiles:
    """Return a checkpoint's files: from `model_dir` where it holds both, else from the Hub or its cache.

    Raises CheckpointError that names the repository, what was looked for and the ways out.
    """
    for name in (model_name, config_name):
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{name!r}: must be the name of a file in the repository.")
    if model_dir is not None:
        folder = Path(model_dir).expanduser()
        weights, config = folder / model_name, folder / config_name
        if weights.is_file() and config.is_file():
            _refuse_another_download(folder, model_repo, revision)
            return CheckpointFiles(weights, config, source=str(folder))
        if not model_repo:
            raise CheckpointError(f"{folder}: does not hold {model_name} and {config_name}{_holding(folder)}.")
    if not model_repo:
        raise CheckpointError("neither model_repo nor model_dir is set: give one of them.")
    revision = revision or pinned_revision(model_repo)
    if model_dir is not None:
        log.info("%s does not hold the files: downloading %s to it", model_dir, model_repo)
    files = CheckpointFiles(
        weights=_download(model_repo, model_name, revision, model_dir),
        config=_download(model_repo, config_name, revision, model_dir),
        source=f"{model_repo}@{revision}",
    )
    if model_dir is not None:
        (files.weights.parent / DOWNLOADED_FROM).write_text(files.source, encoding="utf-8")
    return files


def _refuse_another_download(folder: Path, model_repo: str, revision: str | None) -> None:
    """Keep one repository's files from passing for another's: their names are often the same."""
    marker = folder / DOWNLOADED_FROM
    wanted = f"{model_repo}@{revision or pinned_revision(model_repo)}"
    if model_repo and marker.is_file() and (held := marker.read_text(encoding="utf-8")) != wanted:
        raise CheckpointError(f"{folder}: holds the files of {held}, not of {wanted}; choose another model_dir.")


def _download(repo: str, name: str, revision: str, model_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import logging as hub_logging

    wanted = f"{repo}: {name} at revision {revision}"
    local_dir = None if model_dir is None else Path(model_dir).expanduser()
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # its retries would be ten lines before the one that says what to do
    try:
        return Path(hf_hub_download(repo, name, revision=revision, local_dir=local_dir))
    except LocalEntryNotFoundError as error:
        raise _unreachable(wanted, name, model_dir) from error
    except GatedRepoError as error:
        raise CheckpointError(f"{wanted}: access must be granted on the Hub; then set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{wanted}: no such revision; revision=main is the newest.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{wanted}: no such repository, or a private one (HF_TOKEN).") from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{wanted}: no such file{_offered(repo, revision)}.") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repo!r}: not a repository id, OWNER/NAME is expected.") from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{wanted}: the Hub answered: {one_line(error)}") from error
    except OSError as error:
        raise CheckpointError(f"{wanted}: the download failed: {one_line(error)}") from error
    finally:
        hub_logging.set_verbosity(verbosity)


def _unreachable(wanted: str, name: str, model_dir: str | Path | None) -> CheckpointError:
    looked = (
        "the Hub's cache" if model_dir is None else f"model_dir={model_dir}{_holding(Path(model_dir).expanduser())}"
    )
    return CheckpointError(
        f"{wanted}: not in {looked}, and the Hub cannot be reached. Ways out: (1) connect this machine once, or set "
        f"HF_ENDPOINT to a mirror; (2) copy {name} and the config to a folder, set embeddings.model.model_dir to it; "
        "(3) copy the Hub's cache of a connected machine here and set HF_HOME to it."
    )


def _offered(repo: str, revision: str) -> str:
    from huggingface_hub import list_repo_files

    try:
        names = [n for n in list_repo_files(repo, revision=revision) if not n.startswith(".") and not n.endswith(".md")]
    except Exception as error:  # only decorates an error that is raised anyway
        log.debug("cannot list %s: %s", repo, error)
        return ""
    return f"; it holds {', '.join(names)} (set embeddings.model.model_name and config_name)"


def _holding(folder: Path) -> str:
    if not folder.is_dir():
        return " (no such folder)"
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return f" (it holds {', '.join(names[:8]) or 'no files'}: see model_name and config_name)"


def read_config(path: Path) -> CheckpointConfig:
    """Read a WeSpeaker config.yaml with `safe_load`. Raises CheckpointError where it is something else."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not plain yaml, nothing in it was run: {error}.") from error
    if not isinstance(config, dict) or "model" not in config:
        raise CheckpointError(f"{path}: not a WeSpeaker config: it names no model.")
    if not isinstance(config["model"], str):
        raise CheckpointError(f"{path}: `model` is not an architecture's name; pyannote's format is not supported.")
    sections = {name: config.get(name) or {} for name in ("model_args", "dataset_args")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise CheckpointError(f"{path}: {name} must be a mapping.")
    return CheckpointConfig(config["model"], sections["model_args"], sections["dataset_args"])


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Fill a network from a checkpoint, exactly: a missing or unknown tensor is an error, so is another shape.

    A training projection (`projection.*`) is dropped; the constant tables of a front end may be absent. Raises
    CheckpointError; the file is read with `weights_only=True` and cannot run code.
    """
    tensors = _read_weights(path)
    wanted = network.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith("projection.")}
    missing = [name for name in wanted if name not in given and not name.startswith("frontend.")]
    unknown = [name for name in given if name not in wanted]
    other = [name for name in given if name in wanted and given[name].shape != wanted[name].shape]
    problems = {"missing": missing, "unknown": unknown, "of another shape": other}
    found = [f"{len(names)} {what} (first: {names[0]})" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{path}: not the weights of this architecture: tensors {', '.join(found)}.")
    network.load_state_dict(given, strict=False)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():  # about pickles that are refused in the next moment
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused: it holds more than tensors, so it could run code.") from error
    except (RuntimeError, EOFError, KeyError, ValueError, BadZipFile, OSError) as error:
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged: {one_line(error)[:200]}.") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not (isinstance(loaded, dict) and loaded and all(isinstance(t, torch.Tensor) for t in loaded.values())):
        raise CheckpointError(f"{path}: not a state dict: names with tensors are expected.")
    return loaded
