"""Under which names embeddings are stored.

The invariant kept here: no two audio files share an embedding file, also not on a file system that takes `A` for `a`
or one way to write `é` for the other, and no name is too long for a file.
"""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

_LONGEST_NAME_BYTES = 255 - len("_123456.123456-123456.123456_ch12_emb.npy")


def stored_names(files: Iterable[Path]) -> dict[Path, str]:
    """Name embeddings after the stem of their audio.

    Where those collide: after the whole file name, and where that does not help either, with a digest of the path.
    """
    paths = {file: os.path.split(file) for file in files}
    folders = {folder: folded(folder) for folder in {folder for folder, _ in paths.values()}}
    level = dict.fromkeys(paths, 0)
    names = {file: _bounded(_stem(name)) for file, (_, name) in paths.items()}
    while True:
        sharing: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for file, (folder, _) in paths.items():
            sharing[folders[folder], folded(names[file])].append(file)
        clashing = [group for group in sharing.values() if len(group) > 1]
        if not clashing:
            return names
        for group in clashing:
            lowest = min(level[file] for file in group)
            for file in group:
                if level[file] == lowest:
                    level[file] += 1
                    names[file] = _LEVELS[level[file]](file)


def _stem(name: str) -> str:
    return name if name.endswith(".") else os.path.splitext(name)[0]


def _whole(file: Path) -> str:
    return _bounded(file.name)


def _with_digest(file: Path) -> str:
    return _bounded(file.name, digest_of=os.fsencode(file))


_LEVELS: tuple[Callable[[Path], str], ...] = (lambda file: _bounded(_stem(file.name)), _whole, _with_digest)


def _bounded(name: str, *, digest_of: bytes = b"") -> str:
    """Return a name that leaves room for a suffix, with a digest in place of what is cut off."""
    content = os.fsencode(name)
    if len(content) > _LONGEST_NAME_BYTES or digest_of:
        digest = hashlib.sha256(digest_of or content).hexdigest()[:16]
        return f"{content[: _LONGEST_NAME_BYTES - len(digest) - 1].decode(errors='ignore')}-{digest}"
    return name


def folded(text: str) -> str:
    """Return a path as a file system has it that takes `A` for `a` and one way to write `é` for the other."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
