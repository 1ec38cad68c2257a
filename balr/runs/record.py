"""run.json: what made the embeddings of a folder, and an entry for each run that worked there.

The invariant kept here: one folder holds embeddings of one model.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from balr.atomic import sha256, whole_file
from balr.checkpoints import DOWNLOADED_FROM, pinned_revision
from balr.errors import BalrError, OutputError, one_line
from balr.runs.provenance import now

RUN = "run.json"
_NOT_ENDED = "unknown: killed, or its end could not be written"

Facts = dict[str, Any]


@dataclass
class Record:
    """Hold run.json: the identity of the model, the size of its embeddings, whether another's are being replaced.

    `corpus_root` is the folder of the corpus, by whatever links it was reached.
    """

    folder: Path
    model: Facts = field(default_factory=dict)
    embedding_dim: int | None = None
    replacing: bool = False
    runs: list[Facts] = field(default_factory=list)
    corpus_root: str | None = None

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the record of a folder, an empty one where there is none. Raises OutputError where it is not balr's."""
        path = folder / RUN
        if not path.is_file():
            return cls(folder)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            dim = kept.get("embedding_dim")
            runs = [{str(name): fact for name, fact in run.items()} for run in kept.get("runs", [])]
            root = kept.get("corpus_root")
            root = None if root is None else str(root)
            return cls(
                folder, dict(kept["model"]), None if dim is None else int(dim), bool(kept["replacing"]), runs, root
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise OutputError(
                f"{path}: not balr's record of runs ({type(error).__name__}: {one_line(error)[:80]}); choose another "
                "save_dir, or remove it and make all again with force=true."
            ) from error

    def refuse_another_corpus(self, root: Path) -> None:
        """Refuse a folder that holds embeddings of a corpus in another folder. Raises OutputError."""
        here = os.path.realpath(root)
        if self.corpus_root not in (None, here):
            raise OutputError(
                f"{self.folder}: holds embeddings of another corpus, in {self.corpus_root}, and this one is in {here}; "
                "choose another save_dir."
            )

    def refuse_another_model(self, model: Mapping[str, Any]) -> None:
        """Refuse a folder that was made with another model or other features. Raises OutputError with what differs."""
        if self.replacing:
            raise OutputError(
                f"{self.folder}: a run that was to replace another model's embeddings stopped; force=true redoes it."
            )
        before = self.model or model
        differing = [name for name in {**before, **model} if before.get(name) != model.get(name)]
        if differing:
            shown = ", ".join(
                f"{name} ({before.get(name, '-')} there, {model.get(name, '-')} here)" for name in differing
            )
            raise OutputError(
                f"{self.folder}: was made with another model: {shown}; choose another save_dir, or force=true to "
                "embed again."
            )

    def made_by(self, model: Mapping[str, Any], *, embedding_dim: int | None, root: Path) -> None:
        """Note which model makes the embeddings of which corpus from now on, and whether it replaces another's."""
        self.corpus_root = os.path.realpath(root)
        self.replacing = self.replacing or bool(self.model and self.model != dict(model))
        self.model, self.embedding_dim = dict(model), embedding_dim

    @contextmanager
    def of_run(self, facts: Facts) -> Iterator[Facts]:
        """Write an entry for a run, and at its end how it ended and what it put into the entry that is yielded."""
        for run in self.runs:
            run["exit"] = run.get("exit") or _NOT_ENDED
        entry = {**facts, "ended": None, "exit": None}
        self.runs.append(entry)
        self.write()
        try:
            yield entry
            self.replacing = self.replacing and entry["counts"]["not_reached"] > 0
            self._end(entry, entry["exit"] or "done")
        except BaseException as error:
            with suppress(OutputError):  # the disk is full, most likely, and that is what is being told
                self._end(entry, _reason(error))
            raise

    def write(self) -> None:
        """Keep the record as it is now. Raises OutputError."""
        kept = {name: getattr(self, name) for name in ("model", "embedding_dim", "corpus_root", "replacing", "runs")}
        with whole_file(self.folder / RUN) as file:
            file.write(json.dumps(kept, indent=2).encode() + b"\n")

    def _end(self, entry: Facts, reason: str) -> None:
        entry |= {"ended": now(), "exit": reason}
        self.write()


def identity(model: Mapping[str, Any], precision: str) -> Facts:
    """Return what decides a model's numbers: its files, by content where local, its feature settings, the precision."""
    settings = {"precision": precision, "engine": model.get("engine", "torch")}
    settings |= {f"features.{name}": value for name, value in model.get("features", {}).items() if name != "_target_"}
    names = {name: model[name] for name in ("model_name", "config_name")}
    folder = Path(os.path.expanduser(model["model_dir"])) if model.get("model_dir") else None
    if folder and (folder / DOWNLOADED_FROM).is_file():
        repo, _, revision = (folder / DOWNLOADED_FROM).read_text(encoding="utf-8").rpartition("@")
        return {"model_repo": repo, "revision": revision, **names, **settings}
    if folder and all((folder / name).is_file() for name in names.values()):
        return {**{f"{key} sha256": sha256(folder / name) for key, name in names.items()}, **settings}
    repo = model["model_repo"]
    return {"model_repo": repo, "revision": model.get("revision") or pinned_revision(repo), **names, **settings}


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{f' by {error}' if str(error) else ''}"
    return one_line(error) if isinstance(error, BalrError) else f"{type(error).__name__}: {one_line(error)}"
