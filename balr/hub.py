"""Fetch files of a repository on the Hugging Face Hub. Every error is one line that says what to do."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from balr.errors import CheckpointError, one_line

log = logging.getLogger(__name__)

TIMEOUT_SECONDS: Any = (2.0, 8.0)  # to connect to each of the host's addresses, and to get an answer
_REASONS = {  # by names of classes, which depend on the version of huggingface_hub; the first that fits
    "GatedRepoError": "access must be granted on the Hub; then set HF_TOKEN",
    "RevisionNotFoundError": "no such revision; revision=main is the newest",
    "RepositoryNotFoundError": "no such repository, or a private one (HF_TOKEN)",
    "HFValidationError": "not a repository id, OWNER/NAME is expected",
    "EntryNotFoundError": "no such file",
    "HfHubHTTPError": "the Hub answered: {error}",
    "ConnectionError TransportError Timeout": "the Hub cannot be reached ({error}). Ways out: connect this machine "
    "once; set HF_ENDPOINT to a mirror; or run `balr download {repo} DIR` on a connected machine, copy DIR here and "
    "set embeddings.model.model_dir=DIR",
    "Exception": "the download failed: {error}",
}


def fetch(repo: str, names: Sequence[str], revision: str, folder: Path | None = None) -> list[Path]:
    """Return files of a repository: from the Hub's cache, or downloaded to it or to `folder`, all or none.

    Raises CheckpointError, after about 10 s if the Hub does not answer.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _explained(repo, f"{repo}: {' and '.join(names)} at revision {revision}", revision):
        if folder is None:
            with suppress(LocalEntryNotFoundError):
                return [Path(hf_hub_download(repo, name, revision=revision, local_files_only=True)) for name in names]
        log.info("looking for %s on the Hub…", repo)
        for name in names:  # the download itself would retry for minutes
            get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=TIMEOUT_SECONDS)
        if folder is None:
            return [Path(hf_hub_download(repo, name, revision=revision)) for name in names]
        existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        with TemporaryDirectory(prefix=".balr-download-", dir=existing) as temporary:
            files = [Path(hf_hub_download(repo, name, revision=revision, local_dir=temporary)) for name in names]
            for file, name in zip(files, names, strict=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                file.replace(folder / name)
        return [folder / name for name in names]


def list_names(repo: str, revision: str) -> list[str]:
    """Return the names of the files of a repository, without hidden ones and readmes. Raises CheckpointError."""
    from huggingface_hub import HfApi

    with _explained(repo, f"{repo} at revision {revision}"):
        files = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_SECONDS).siblings or ()
    names = sorted(file.rfilename for file in files)
    return [name for name in names if not name.startswith(".") and not name.endswith(".md")]


@contextmanager
def _explained(repo: str, wanted: str, revision: str | None = None) -> Iterator[None]:
    """Raise every error as a CheckpointError of one line, and keep huggingface_hub from logging it as well."""
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except Exception as error:
        classes = {cls.__name__ for cls in type(error).__mro__}
        reason = next(reason for names, reason in _REASONS.items() if classes & {*names.split()})
        reason = reason.format(error=one_line(error), repo=repo)
        if revision and "EntryNotFoundError" in classes:
            with suppress(CheckpointError):
                reason += f"; it holds {', '.join(list_names(repo, revision))} (see embeddings.model.model_name)"
        raise CheckpointError(f"{wanted}: {reason}.") from error
    finally:
        hub_logging.set_verbosity(verbosity)
