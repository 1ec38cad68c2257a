"""Where the embedding of an utterance goes: a function of the utterance alone, never of its neighbours."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable

from balr.atomic import TEMPORARY
from balr.errors import InputError
from balr.records import Utterance

_LONGEST_NAME_BYTES = 255 - len(f"_123456.123456-123456.123456_ch12_emb.npy{TEMPORARY}")
_DIGEST_CHARACTERS = 16


def embedding_file(utterance: Utterance, suffix: str, *, root: str, output_dir: str | None) -> str:
    """Return `<stem>_emb<suffix>` in the tree of the corpus below `output_dir`, or beside the audio where that is None.

    A segment adds its times, a channel its number: `talk_1.5-3.25_ch0_emb.npy`. Audio outside of `root` keeps its whole
    path below `output_dir`. As text, as there are millions, and paths take ten times as long.
    """
    assert utterance.audio is not None
    folder, name = os.path.split(utterance.audio)
    if output_dir is not None:
        inside = os.path.join(root, "")
        path = os.path.join(folder, "")
        below = path[len(inside) :] if path.startswith(inside) else path[len(utterance.audio.anchor) :]
        folder = f"{output_dir}{os.sep}{below}".rstrip(os.sep)
    return f"{folder}{os.sep}{_bounded(os.path.splitext(name)[0])}{utterance.part.suffix}_emb{suffix}"


def refuse_shared_files(utterances: Iterable[Utterance], files: Iterable[str], *, folds_case: bool) -> None:
    """Refuse two utterances whose embeddings would share a file. Raises InputError.

    `folds_case`: the file system takes `A` for `a`, or one way to write `é` for the other.
    """
    first: dict[str, Utterance] = {}
    for utterance, file in zip(utterances, files, strict=True):
        other = first.setdefault(_folded(file) if folds_case else file, utterance)
        if other is not utterance:
            same = "an utterance is listed once" if other.audio == utterance.audio else "rename one of the audio files"
            raise InputError(f"{other.id!r} and {utterance.id!r} would share the embedding file {file}: {same}.")


def _bounded(name: str) -> str:
    """Return a name that leaves room for what is added to it, with a digest in place of what is cut off."""
    if len(name) * 4 <= _LONGEST_NAME_BYTES or len(content := os.fsencode(name)) <= _LONGEST_NAME_BYTES:
        return name
    digest = hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{content[: _LONGEST_NAME_BYTES - len(digest) - 1].decode(errors='ignore')}-{digest}"


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
