"""`load_model`: a model by name, by repository or by folder."""

from pathlib import Path
from typing import Any

import torch

from balr.checkpoints import files_in, hub_settings, published_names
from balr.config import FeaturesConfig, demo_checkpoint
from balr.embeddings.wespeaker import WespeakerModel
from balr.errors import CheckpointError


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

    `demo` ships with balr, for demonstrations and tests.

    A folder holds the weights and one yaml, under any names. `model_dir` is where files are downloaded to (None: the
    Hub's own cache). Raises CheckpointError or ConfigError.
    """
    chosen: dict[str, Any] = {"device": device, "features": features, "precision": precision, "engine": engine}
    folder = demo_checkpoint() if name == "demo" else Path(name).expanduser()
    if str(name) in published_names() or not folder.is_dir():
        chosen |= hub_settings(str(name))
        return WespeakerModel(**chosen, model_dir=model_dir)
    files = files_in(folder)
    if files is None:
        raise CheckpointError(f"{folder}: no checkpoint, which is weights (.pt) and a yaml.")
    return WespeakerModel("", *files, folder, **chosen)
