"""The published checkpoints in one table, and the files of any checkpoint: in a folder or on the Hugging Face Hub.

EERs are in % on VoxCeleb1-O, -E, -H as WeSpeaker published them: cosine scores without normalisation.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType

import yaml

from balr.config import config_dir
from balr.errors import CheckpointError
from balr.hub import fetch, list_names

log = logging.getLogger(__name__)

DOWNLOADED_FROM = ".downloaded-from"  # in a model_dir: the repository and revision of its files


@dataclass(frozen=True)
class PublishedCheckpoint:
    """Describe a checkpoint, at the revision that was tested; `conf/embeddings/model/<name>.yaml` names its files."""

    name: str
    model_repo: str
    architecture: str
    revision: str
    embedding_dim: int
    parameters_millions: float
    trained_on: str
    eer_percent: tuple[float, float, float] | None
    licence: str


@dataclass(frozen=True)
class CheckpointFiles:
    """Locate the weights and the training config of a checkpoint, and say where they came from."""

    weights: Path
    config: Path
    source: str


# fmt: off
_TABLE = (
    ("campplus", "Wespeaker/wespeaker-voxceleb-campplus", "CAMPPlus",
     "acf623ad8ca746e50baa432255cf8fc57c669c45", 512, 7.18, "VoxCeleb2 dev", (0.803, 0.932, 1.86), "apache-2.0"),
    ("campplus_lm", "Wespeaker/wespeaker-voxceleb-campplus-LM", "CAMPPlus",
     "9bdc7f509874f9fc9154e48ce02d8e9c809bc916", 512, 7.18, "VoxCeleb2 dev", (0.707, 0.845, 1.664), "apache-2.0"),
    ("cnceleb_resnet34", "Wespeaker/wespeaker-cnceleb-resnet34", "ResNet34",
     "f5a201849aa7cae741ec75cd02a0bc9dd5712ca2", 256, 6.63, "CN-Celeb", None, "apache-2.0"),
    ("cnceleb_resnet34_lm", "Wespeaker/wespeaker-cnceleb-resnet34-LM", "ResNet34",
     "ed25c1ecbd9e8d3c7944df95430da02bd3cdcf7a", 256, 6.63, "CN-Celeb", None, "apache-2.0"),
    ("ecapa_tdnn1024", "Wespeaker/wespeaker-voxceleb-ecapa-tdnn1024", "ECAPA_TDNN_GLOB_c1024",
     "main", 192, 14.65, "VoxCeleb2 dev", (0.856, 1.072, 2.059), "apache-2.0"),
    ("ecapa_tdnn1024_lm", "Wespeaker/wespeaker-voxceleb-ecapa-tdnn1024-LM", "ECAPA_TDNN_GLOB_c1024",
     "main", 192, 14.65, "VoxCeleb2 dev", (0.798, 0.993, 1.883), "apache-2.0"),
    ("ecapa_tdnn512", "Wespeaker/wespeaker-voxceleb-ecapa-tdnn512", "ECAPA_TDNN_GLOB_c512",
     "main", 192, 6.19, "VoxCeleb2 dev", (1.069, 1.209, 2.31), "apache-2.0"),
    ("ecapa_tdnn512_lm", "Wespeaker/wespeaker-ecapa-tdnn512-LM", "ECAPA_TDNN_GLOB_c512",
     "a2f3dcb1c8702caccc7a55ceb57f5e8d1842112b", 192, 6.19, "VoxCeleb2 dev", (0.878, 1.072, 2.007), "cc-by-4.0"),
    ("gemini_dfresnet114_lm", "Wespeaker/wespeaker-voxceleb-gemini-DFresnet114-LM", "Gemini_DF_ResNet114",
     "de9250ca21c47d167143839408a350c41c8eed54", 256, 6.53, "VoxCeleb2 dev", (0.771, 0.906, 1.599), "apache-2.0"),
    ("redimnet2_b6_lm", "Wespeaker/wespeaker-voxceleb-redimnet2-B6-LM", "ReDimNet2B6",
     "e34354de2429a45894905bd58c24c22250485b9a", 192, 12.4, "VoxCeleb2 dev", (0.33, 0.502, 0.985), "apache-2.0"),
    ("resnet152_lm", "Wespeaker/wespeaker-voxceleb-resnet152-LM", "ResNet152",
     "4adba1525a6c9d5fff74b6df43a6ec97a86c4112", 256, 19.82, "VoxCeleb2 dev", None, "apache-2.0"),
    ("resnet221_lm", "Wespeaker/wespeaker-voxceleb-resnet221-LM", "ResNet221",
     "8ea92abc94e8426f0663fadf45a8eeb8133324c4", 256, 23.79, "VoxCeleb2 dev", (0.58, 0.729, 1.351), "apache-2.0"),
    ("resnet293_lm", "Wespeaker/wespeaker-voxceleb-resnet293-LM", "ResNet293",
     "4d9c92996f3c2567b2d07ec77feb7c59652a2c66", 256, 28.62, "VoxCeleb2 dev", (0.532, 0.707, 1.311), "cc-by-4.0"),
    ("resnet34", "Wespeaker/wespeaker-voxceleb-resnet34", "ResNet34",
     "ff1ac5bca8ef11e90662b879aa923979e0bd277b", 256, 6.63, "VoxCeleb2 dev", (0.867, 1.049, 1.959), "apache-2.0"),
    ("resnet34_lm", "Wespeaker/wespeaker-voxceleb-resnet34-LM", "ResNet34",
     "f0c48c298fd835726c27956a5d617bad7115627e", 256, 6.63, "VoxCeleb2 dev", (0.797, 0.937, 1.695), "cc-by-4.0"),
    ("samresnet34_voxblink2", "gaunernst/wespeaker-voxblink2-samresnet34", "SimAM_ResNet34_ASP",
     "bebca658aae1f059569332de0e21537caba58d29", 256, 25.21, "VoxBlink2", (0.415, 0.615, 1.121), "not stated"),
)
# fmt: on


@cache
def published_checkpoints() -> Mapping[str, PublishedCheckpoint]:
    """Return the published checkpoints by repository id, ordered by name."""
    checkpoints = (PublishedCheckpoint(*row) for row in _TABLE)
    return MappingProxyType({checkpoint.model_repo: checkpoint for checkpoint in checkpoints})


def pinned_revision(model_repo: str) -> str:
    """Return the revision that balr ships for a repository, `main` for one it does not know."""
    known = published_checkpoints().get(model_repo)
    return known.revision if known else "main"


def published_names() -> list[str]:
    """Return the names of the published checkpoints, as `balr models` lists them."""
    return [checkpoint.name for checkpoint in published_checkpoints().values()]


def hub_settings(name: str) -> dict[str, str]:
    """Return model_repo, model_name and config_name of a name in `balr models` or of OWNER/NAME.

    Raises CheckpointError that suggests near names.
    """
    known = published_checkpoints().get(name)
    name = known.name if known else name
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
    if folder and (there or not model_repo):  # a download would replace one of somebody's own files
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
