"""`load_model`: one name for a model, wherever its files are."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from balr.checkpoints import published_checkpoints, published_settings
from balr.config import FeaturesConfig
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import CheckpointError

_CONFIG_SUFFIXES = (".yaml", ".yml")


def load_model(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    features: FeaturesConfig = FeaturesConfig(),
    model_dir: str | Path | None = None,
    precision: str = "fp32",
    engine: str = "torch",
) -> WespeakerModel:
    """Load a model by a name of `balr models`, a repository of the Hugging Face Hub, or a folder.

    A folder holds the weights and one yaml, under any names. `model_dir` is where files are downloaded to (None: the
    Hub's own cache). Raises CheckpointError or ConfigError.
    """
    chosen: dict[str, Any] = {"device": device, "features": features, "precision": precision, "engine": engine}
    folder = os.path.expanduser(name)
    settings = published_settings(str(name))
    if settings is not None:
        return WespeakerModel(**settings, model_dir=model_dir, **chosen)
    if os.path.isdir(folder):
        return WespeakerModel("", *files_of_checkpoint(Path(folder)), folder, **chosen)
    if str(name).count("/") == 1 and not folder.startswith((".", "/", "~")):
        known = published_checkpoints().get(str(name))
        settings = published_settings(known.name) if known else {"model_repo": str(name), "model_name": "avg_model.pt"}
        assert settings is not None
        return WespeakerModel(**settings, model_dir=model_dir, **chosen)
    names = [checkpoint.name for checkpoint in published_checkpoints().values()]
    near = get_close_matches(str(name), names, n=3, cutoff=0.4) or names
    raise CheckpointError(f"{name}: neither a folder, nor OWNER/NAME on the Hub, nor one of {', '.join(near)}.")


def files_of_checkpoint(folder: Path) -> tuple[str, str]:
    """Return the names of the weights and the config in a folder that holds one of each. Raises CheckpointError."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    configs = [name for name in names if name.endswith(_CONFIG_SUFFIXES)]
    weights = [name for name in names if name.endswith(".pt")] or [name for name in names if name == "avg_model"]
    for what, found in (("weights (.pt)", weights), ("yaml", configs)):
        if len(found) != 1:
            there = ", ".join(found) or "none"
            raise CheckpointError(f"{folder}: one file of {what} is expected, and there is {there}.")
    return weights[0], configs[0]
