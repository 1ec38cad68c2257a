"""Fetch a file of a checkpoint from the Hugging Face Hub, once; whatever goes wrong there is said in one line."""

import logging
from pathlib import Path

from balr.errors import CheckpointError, one_line

log = logging.getLogger(__name__)


def download(repo: str, name: str, revision: str, model_dir: str | Path | None) -> Path:
    """Return a file of a repository, from the Hub or its cache. Raises CheckpointError that names the ways out."""
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
    looked = "the Hub's cache" if model_dir is None else f"model_dir={model_dir}{holding(Path(model_dir).expanduser())}"
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


def holding(folder: Path) -> str:
    """Say in brackets what a folder holds, for a message."""
    if not folder.is_dir():
        return " (no such folder)"
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return f" (it holds {', '.join(names[:8]) or 'no files'}: see model_name and config_name)"
