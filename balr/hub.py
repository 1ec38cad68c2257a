"""Fetch files of a repository on the Hugging Face Hub. Every error is one line that says what to do."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TypeVar

from balr.errors import CheckpointError, one_line

log = logging.getLogger(__name__)

ANSWER_SECONDS = 8.0  # huggingface_hub itself would retry for minutes
_T = TypeVar("_T")
_COMMIT = re.compile("[0-9a-f]{40}")
_REASONS = {  # by the class of huggingface_hub; the first that fits
    "GatedRepoError": "access must be granted on the Hub; then set HF_TOKEN",
    "RevisionNotFoundError": "no such revision; revision=main is the newest",
    "RepositoryNotFoundError": "no such repository, or a private one (HF_TOKEN)",
    "HFValidationError": "not a repository id, OWNER/NAME is expected",
    "EntryNotFoundError": "no such file",
    "HfHubHTTPError": "the Hub answered: {error}",
    "_UnreachableError": "the Hub cannot be reached ({error}). Ways out: connect this machine once; set HF_ENDPOINT to "
    "a mirror; or run `balr download {repo} DIR` on a connected machine, copy DIR here and set "
    "embeddings.model.model_dir=DIR",
    "Exception": "the download failed: {error}",
}


class _UnreachableError(Exception):
    pass


def fetch(repo: str, names: Sequence[str], revision: str, folder: Path | None = None) -> list[Path]:
    """Return files of a repository: from the Hub's cache, or downloaded to it or to `folder`, all or none.

    Raises CheckpointError, after about 10 s if the Hub does not answer.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    with _explained(repo, f"{repo}: {' and '.join(names)} at revision {revision}", revision):
        cached = _cached(repo, names, revision) if folder is None else []
        if cached and (constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(revision)):
            return cached
        log.info("looking for %s on the Hub…", repo)
        try:
            for name in names:
                url = hf_hub_url(repo, name, revision=revision)
                _answer_in_time(partial(get_hf_file_metadata, url, timeout=ANSWER_SECONDS))
        except Exception:
            if cached:
                return cached
            raise
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
        names = _answer_in_time(lambda: HfApi().list_repo_files(repo, revision=revision))
    return sorted(name for name in names if not name.startswith(".") and not name.endswith(".md"))


def _cached(repo: str, names: Sequence[str], revision: str) -> list[Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return [Path(hf_hub_download(repo, name, revision=revision, local_files_only=True)) for name in names]
    except LocalEntryNotFoundError:
        return []


def _answer_in_time(ask: Callable[[], _T]) -> _T:
    """Call a function of huggingface_hub, whose own time limits cover neither the look-up of a name nor retries."""
    answer: Future[_T] = Future()

    def wait() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    Thread(target=wait, daemon=True).start()
    try:
        return answer.result(ANSWER_SECONDS)
    except Exception as error:
        if _class_names(error) & {"HfHubHTTPError", "HFValidationError"}:
            raise
        raise _UnreachableError(one_line(error) or f"no answer in {ANSWER_SECONDS:g} s") from error


@contextmanager
def _explained(repo: str, wanted: str, revision: str | None = None) -> Iterator[None]:
    """Raise every error as a CheckpointError of one line, and keep huggingface_hub from logging it as well."""
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except Exception as error:
        classes = _class_names(error)
        reason = next(reason for name, reason in _REASONS.items() if name in classes)
        reason = reason.format(error=one_line(error), repo=repo)
        if revision and "EntryNotFoundError" in classes:
            with suppress(CheckpointError):
                reason += f"; it holds {', '.join(list_names(repo, revision))} (see embeddings.model.model_name)"
        raise CheckpointError(f"{wanted}: {reason}.") from error
    finally:
        hub_logging.set_verbosity(verbosity)


def _class_names(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}
