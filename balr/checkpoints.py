"""The published checkpoints: one table of what is known of each, for the command line, records and the README.

EERs are in % on VoxCeleb1-O, -E, -H as WeSpeaker published them: cosine scores without normalisation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import yaml

from balr.config import config_dir

DOWNLOADED_FROM = ".downloaded-from"  # in a model_dir: the repository and revision of its files


@dataclass(frozen=True)
class PublishedCheckpoint:
    """Describe a checkpoint whose files `conf/embeddings/model/<name>.yaml` names, at the revision that was checked."""

    name: str
    model_repo: str
    revision: str
    architecture: str
    embedding_dim: int
    parameters_millions: float
    trained_on: str
    eer_percent: tuple[float, float, float] | None
    licence: str


# fmt: off
_PUBLISHED = (
    PublishedCheckpoint(
        "campplus", "Wespeaker/wespeaker-voxceleb-campplus",
        "acf623ad8ca746e50baa432255cf8fc57c669c45", "CAMPPlus",
        512, 7.18, "VoxCeleb2 dev", (0.803, 0.932, 1.86), "apache-2.0",
    ),
    PublishedCheckpoint(
        "campplus_lm", "Wespeaker/wespeaker-voxceleb-campplus-LM",
        "9bdc7f509874f9fc9154e48ce02d8e9c809bc916", "CAMPPlus",
        512, 7.18, "VoxCeleb2 dev", (0.707, 0.845, 1.664), "apache-2.0",
    ),
    PublishedCheckpoint(
        "cnceleb_resnet34", "Wespeaker/wespeaker-cnceleb-resnet34",
        "f5a201849aa7cae741ec75cd02a0bc9dd5712ca2", "ResNet34",
        256, 6.63, "CN-Celeb", None, "apache-2.0",
    ),
    PublishedCheckpoint(
        "cnceleb_resnet34_lm", "Wespeaker/wespeaker-cnceleb-resnet34-LM",
        "ed25c1ecbd9e8d3c7944df95430da02bd3cdcf7a", "ResNet34",
        256, 6.63, "CN-Celeb", None, "apache-2.0",
    ),
    PublishedCheckpoint(
        "ecapa_tdnn1024", "Wespeaker/wespeaker-voxceleb-ecapa-tdnn1024",
        "main", "ECAPA_TDNN_GLOB_c1024",
        192, 14.65, "VoxCeleb2 dev", (0.856, 1.072, 2.059), "apache-2.0",
    ),
    PublishedCheckpoint(
        "ecapa_tdnn1024_lm", "Wespeaker/wespeaker-voxceleb-ecapa-tdnn1024-LM",
        "main", "ECAPA_TDNN_GLOB_c1024",
        192, 14.65, "VoxCeleb2 dev", (0.798, 0.993, 1.883), "apache-2.0",
    ),
    PublishedCheckpoint(
        "ecapa_tdnn512", "Wespeaker/wespeaker-voxceleb-ecapa-tdnn512",
        "main", "ECAPA_TDNN_GLOB_c512",
        192, 6.19, "VoxCeleb2 dev", (1.069, 1.209, 2.31), "apache-2.0",
    ),
    PublishedCheckpoint(
        "ecapa_tdnn512_lm", "Wespeaker/wespeaker-ecapa-tdnn512-LM",
        "a2f3dcb1c8702caccc7a55ceb57f5e8d1842112b", "ECAPA_TDNN_GLOB_c512",
        192, 6.19, "VoxCeleb2 dev", (0.878, 1.072, 2.007), "cc-by-4.0",
    ),
    PublishedCheckpoint(
        "gemini_dfresnet114_lm", "Wespeaker/wespeaker-voxceleb-gemini-DFresnet114-LM",
        "de9250ca21c47d167143839408a350c41c8eed54", "Gemini_DF_ResNet114",
        256, 6.53, "VoxCeleb2 dev", (0.771, 0.906, 1.599), "apache-2.0",
    ),
    PublishedCheckpoint(
        "redimnet2_b6_lm", "Wespeaker/wespeaker-voxceleb-redimnet2-B6-LM",
        "e34354de2429a45894905bd58c24c22250485b9a", "ReDimNet2B6",
        192, 12.4, "VoxCeleb2 dev", (0.33, 0.502, 0.985), "apache-2.0",
    ),
    PublishedCheckpoint(
        "resnet152_lm", "Wespeaker/wespeaker-voxceleb-resnet152-LM",
        "4adba1525a6c9d5fff74b6df43a6ec97a86c4112", "ResNet152",
        256, 19.82, "VoxCeleb2 dev", None, "apache-2.0",
    ),
    PublishedCheckpoint(
        "resnet221_lm", "Wespeaker/wespeaker-voxceleb-resnet221-LM",
        "8ea92abc94e8426f0663fadf45a8eeb8133324c4", "ResNet221",
        256, 23.79, "VoxCeleb2 dev", (0.58, 0.729, 1.351), "apache-2.0",
    ),
    PublishedCheckpoint(
        "resnet293_lm", "Wespeaker/wespeaker-voxceleb-resnet293-LM",
        "4d9c92996f3c2567b2d07ec77feb7c59652a2c66", "ResNet293",
        256, 28.62, "VoxCeleb2 dev", (0.532, 0.707, 1.311), "cc-by-4.0",
    ),
    PublishedCheckpoint(
        "resnet34", "Wespeaker/wespeaker-voxceleb-resnet34",
        "ff1ac5bca8ef11e90662b879aa923979e0bd277b", "ResNet34",
        256, 6.63, "VoxCeleb2 dev", (0.867, 1.049, 1.959), "apache-2.0",
    ),
    PublishedCheckpoint(
        "resnet34_lm", "Wespeaker/wespeaker-voxceleb-resnet34-LM",
        "f0c48c298fd835726c27956a5d617bad7115627e", "ResNet34",
        256, 6.63, "VoxCeleb2 dev", (0.797, 0.937, 1.695), "cc-by-4.0",
    ),
    PublishedCheckpoint(
        "samresnet34_voxblink2", "gaunernst/wespeaker-voxblink2-samresnet34",
        "bebca658aae1f059569332de0e21537caba58d29", "SimAM_ResNet34_ASP",
        256, 25.21, "VoxBlink2", (0.415, 0.615, 1.121), "not stated",
    ),
)
# fmt: on


@cache
def published_checkpoints() -> Mapping[str, PublishedCheckpoint]:
    """Return the published checkpoints by repository id, ordered by name."""
    return MappingProxyType({checkpoint.model_repo: checkpoint for checkpoint in _PUBLISHED})


def pinned_revision(model_repo: str) -> str:
    """Return the revision that balr ships for a repository, `main` for one it does not know."""
    known = published_checkpoints().get(model_repo)
    return known.revision if known else "main"


def published_settings(name: str) -> dict[str, Any] | None:
    """Return where the files of a published checkpoint are, by its name in `balr models`; None for another name."""
    if name not in {checkpoint.name for checkpoint in _PUBLISHED}:
        return None
    folder = config_dir() / "embeddings" / "model"
    shared, own = (yaml.safe_load((folder / f"{one}.yaml").read_text("utf-8"))["model"] for one in ("_wespeaker", name))
    settings = {**shared, **own}
    return {key: settings[key] for key in ("model_repo", "model_name", "config_name")}
