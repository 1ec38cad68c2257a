"""balr: exact, fast and loss-free speaker embeddings of whole corpora.

The public names are imported when they are first used, so that the command line answers without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balr.config import DataConfig, FeaturesConfig
    from balr.data.dataset import AudioDataset
    from balr.embeddings.loading import load_model
    from balr.embeddings.wespeaker import WespeakerModel
    from balr.stores.reading import load_embeddings

__all__ = ["AudioDataset", "DataConfig", "FeaturesConfig", "WespeakerModel", "load_embeddings", "load_model"]


def __getattr__(name: str) -> Any:
    homes = {
        "AudioDataset": "balr.data.dataset",
        "DataConfig": "balr.config",
        "FeaturesConfig": "balr.config",
        "WespeakerModel": "balr.embeddings.wespeaker",
        "load_embeddings": "balr.stores.reading",
        "load_model": "balr.embeddings.loading",
    }
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
