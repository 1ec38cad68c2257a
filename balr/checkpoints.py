"""The published checkpoints (checkpoints.csv) and the files of any checkpoint: in a folder or on the Hugging Face Hub.

EERs are in % on VoxCeleb1-O, -E, -H as WeSpeaker published them: cosine scores without normalisation.
"""

import csv
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import yaml

from balr.config import config_dir
from balr.errors import CheckpointError
from balr.hub import fetch, list_names

log = logging.getLogger(__name__)

DOWNLOADED_FROM = ".downloaded-from"  # in a model_dir: the repository and revision of its files


@dataclass(frozen=True)
class CheckpointFiles:
    """Locate the weights and the training config of a checkpoint, and say where they came from."""

    weights: Path
    config: Path
    source: str


@cache
def published_checkpoints() -> dict[str, dict[str, str]]:
    """Return the published checkpoints by repository id, ordered by name, at the revisions that were tested.

    `conf/embeddings/model/<name>.yaml` names their files.
    """
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return {row["model_repo"]: row for row in csv.DictReader(file)}


def pinned_revision(model_repo: str) -> str:
    """Return the revision that balr ships for a repository, `main` for one it does not know."""
    return published_checkpoints().get(model_repo, {}).get("revision", "main")


def published_names() -> list[str]:
    """Return the names of the published checkpoints, as `balr models` lists them."""
    return [row["name"] for row in published_checkpoints().values()]


def published_table() -> str:
    """Return the published checkpoints as text of two lines each, within 80 columns."""
    lines = [f"{'embeddings/model=':21}  dim  M params  {'EER O/E/H':14}  {'trained on':13}  licence"]
    for row in published_checkpoints().values():
        eer = "/".join(f"{float(row[name]):.2f}" for name in ("eer_o", "eer_e", "eer_h") if row[name]) or "-"
        size = f"{row['embedding_dim']:>3}  {float(row['parameters_millions']):8.1f}"
        lines.append(f"{row['name']:21}  {size}  {eer:14}  {row['trained_on']:13}  {row['licence']}")
        lines.append(f"  {row['model_repo']}  {row['architecture']}")
    lines += [f"{'demo':21}  128       1.2  -               LibriSpeech    cc-by-4.0"]
    lines += ["  in balr itself, for demonstrations and tests only  ECAPA_TDNN"]
    lines += ["EER: % on VoxCeleb1-O, -E, -H as WeSpeaker published it, cosine scores without", "normalisation."]
    return "\n".join(lines)


def hub_settings(name: str) -> dict[str, str]:
    """Return model_repo, model_name and config_name of a name in `balr models` or of OWNER/NAME.

    Raises CheckpointError that suggests near names.
    """
    name = published_checkpoints().get(name, {}).get("name", name)
    is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    if not is_repository and name not in published_names():
        near = get_close_matches(name, published_names(), n=3, cutoff=0.4) or published_names()
        raise CheckpointError(f"{name}: neither a folder, nor OWNER/NAME on the Hub, nor one of {', '.join(near)}.")
    folder = config_dir() / "embeddings" / "model"
    settings: dict[str, str] = {}
    for file in ("_wespeaker",) if is_repository else ("_wespeaker", name):
        settings |= yaml.safe_load((folder / f"{file}.yaml").read_text(encoding="utf-8"))["model"]
    repo = {"model_repo": name} if is_repository else {}
    return {key: settings[key] for key in ("model_repo", "model_name", "config_name")} | repo


def files_in(folder: Path) -> tuple[str, str] | None:
    """Return the names of the weights and the config in a folder; None if it holds neither or does not exist.

    Raises CheckpointError if there are several of a kind, or one without the other.
    """
    if not folder.is_dir():
        return None
    return _weights_and_config((path.name for path in folder.iterdir() if path.is_file()), folder)


def find_checkpoint(
    model_repo: str, model_name: str, *, config_name: str, model_dir: str | Path | None, revision: str | None
) -> CheckpointFiles:
    """Return a checkpoint's files: from `model_dir` if it holds both, else from the Hub or its cache.

    Raises CheckpointError that names the repository, what was looked for and the ways out.
    """
    for name in (model_name, config_name):
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{name!r}: must be the name of a file in the repository.")
    folder = None if model_dir is None else Path(model_dir).expanduser()
    source = f"{model_repo}@{revision or pinned_revision(model_repo)}"
    there = [name for name in (model_name, config_name) if folder and (folder / name).is_file()]
    if folder and len(there) == 2:
        marker = folder / DOWNLOADED_FROM
        found = marker.read_text(encoding="utf-8") if model_repo and marker.is_file() else source
        if found != source:
            raise CheckpointError(f"{folder}: holds the files of {found}, not of {source}; choose another model_dir.")
        return CheckpointFiles(folder / model_name, folder / config_name, source=str(folder))
    if folder and (there or not model_repo):  # a download would replace one of the user's files
        raise CheckpointError(f"{folder}: does not hold both {model_name} and {config_name}{_content(folder)}.")
    if not model_repo:
        raise CheckpointError("neither model_repo nor model_dir is set: give one of them.")
    if folder:
        log.info("%s does not hold %s and %s: downloading %s to it", folder, model_name, config_name, model_repo)
    weights, config = fetch(model_repo, (model_name, config_name), source.rpartition("@")[2], folder)
    if folder:
        (folder / DOWNLOADED_FROM).write_text(source, encoding="utf-8")
    return CheckpointFiles(weights, config, source=source)


def download_checkpoint(name: str, folder: Path) -> CheckpointFiles:
    """Fetch the files of a published checkpoint or of OWNER/NAME to a folder. Raises CheckpointError."""
    settings = hub_settings(name)
    repo = settings["model_repo"]
    if repo not in published_checkpoints():
        found = _weights_and_config(list_names(repo, "main"), repo)
        settings |= dict(zip(("model_name", "config_name"), found or (), strict=False))
    return find_checkpoint(**settings, model_dir=folder, revision=None)


def _weights_and_config(names: Iterable[str], where: object) -> tuple[str, str] | None:
    listed = sorted(name for name in names if not name.startswith("."))
    weights = [name for name in listed if name.endswith(".pt")] or [name for name in listed if name == "avg_model"]
    configs = [name for name in listed if name.endswith((".yaml", ".yml"))]
    if not weights and not configs:
        return None
    for what, found in (("weights (.pt)", weights), ("yaml", configs)):
        if len(found) != 1:
            there = ", ".join(found) or "none"
            raise CheckpointError(f"{where}: one file of {what} is expected, and there is {there}.")
    return weights[0], configs[0]


def _content(folder: Path) -> str:
    if not folder.is_dir():
        return " (no such folder)"
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return f" (it holds {', '.join(names[:8]) or 'no files'}: see model_name and config_name)"
