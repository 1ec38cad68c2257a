"""run.json: which model the embeddings of a folder are of, which corpus, and an entry for each run that worked there.

The invariant kept here: one folder holds the embeddings of one model and one corpus.
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
    """The content of run.json. `forcing`: a run that embeds all again has not reached its end."""

    folder: Path
    model: Facts = field(default_factory=dict)
    embedding_dim: int | None = None
    corpus_root: str | None = None
    forcing: bool = False
    runs: list[Facts] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the record of a folder, an empty one where there is none. Raises OutputError where it is not balr's."""
        path = folder / RUN
        if not path.is_file():
            return cls(folder)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            dim, root = content.get("embedding_dim"), content.get("corpus_root")
            runs = [{str(name): fact for name, fact in run.items()} for run in content.get("runs", [])]
            return cls(
                folder,
                dict(content["model"]),
                None if dim is None else int(dim),
                None if root is None else str(root),
                bool(content["forcing"]),
                runs,
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise OutputError(
                f"{path}: not balr's record of runs ({type(error).__name__}: {one_line(error)[:80]}); choose another "
                "save_dir, or remove it and embed all again with force=true."
            ) from error

    def refuse_another_corpus(self, root: Path) -> None:
        """Raise OutputError where the folder holds embeddings of a corpus in another folder."""
        here = os.path.realpath(root)
        if self.corpus_root not in (None, here):
            raise OutputError(
                f"{self.folder}: holds embeddings of another corpus, in {self.corpus_root}, and this one is in {here}; "
                "choose another save_dir."
            )

    def refuse_another_model(self, model: Facts) -> None:
        """Raise OutputError, with what differs, where the folder holds embeddings of another model or features."""
        if not self.model:
            raise OutputError(
                f"{self.folder}: holds embeddings and no {RUN} that says which model they are of; choose another "
                "save_dir, or force=true to embed all again."
            )
        before, here = self.model.get("settings", {}), model["settings"]
        differing = [
            f"{name} {before.get(name)} there, {here.get(name)} here"
            for name in dict.fromkeys([*before, *here])
            if before.get(name) != here.get(name)
        ]
        if self.model.get("files") != model["files"]:
            differing.insert(0, f"those of {self.model.get('name')}, and this model is {model['name']}")
        if differing:
            raise OutputError(
                f"{self.folder}: holds other embeddings: {'; '.join(differing)}; choose another save_dir, or "
                "force=true to embed all again."
            )

    def is_of(self, model: Facts) -> bool:
        """Return whether the embeddings are of this model, wherever its files are."""
        return all(self.model.get(name) == model[name] for name in ("files", "settings"))

    @contextmanager
    def of_run(self, facts: Facts) -> Iterator[Facts]:
        """Write an entry for a run; at its end, also how it ended and what was put into the yielded entry."""
        for run in self.runs:
            run["exit"] = run.get("exit") or _NOT_ENDED
        entry = {**facts, "ended": None, "exit": None}
        self.runs.append(entry)
        self.write()
        try:
            yield entry
        except BaseException as error:
            with suppress(OutputError):  # the disk is full, most likely, which is the error that is raised
                self._end(entry, _reason(error))
            raise
        self._end(entry, entry["exit"] or "done")

    def write(self) -> None:
        """Write run.json. Raises OutputError."""
        names = ("model", "embedding_dim", "corpus_root", "forcing", "runs")
        with whole_file(self.folder / RUN) as file:
            file.write(json.dumps({name: getattr(self, name) for name in names}, indent=2).encode() + b"\n")

    def _end(self, entry: Facts, reason: str) -> None:
        entry |= {"ended": now(), "exit": reason}
        self.write()


def identity(model: Mapping[str, Any], precision: str) -> Facts:
    """Return what decides a model's numbers: its files, by content where local, and the settings; and its `name`."""
    settings = {"precision": precision, "engine": model.get("engine", "torch")}
    settings |= {f"features.{name}": value for name, value in model.get("features", {}).items() if name != "_target_"}
    names = {key: model[key] for key in ("model_name", "config_name")}
    repo, revision = model["model_repo"], model.get("revision")
    folder = Path(os.path.expanduser(model["model_dir"])) if model.get("model_dir") else None
    if folder and (folder / DOWNLOADED_FROM).is_file():
        repo, _, revision = (folder / DOWNLOADED_FROM).read_text(encoding="utf-8").rpartition("@")
    elif folder and all((folder / name).is_file() for name in names.values()):
        files = {f"{key} sha256": sha256(folder / name) for key, name in names.items()}
        return {"name": str(folder.absolute()), "files": files, "settings": settings}
    files = {"model_repo": repo, "revision": revision or pinned_revision(repo), **names}
    return {"name": repo, "files": files, "settings": settings}


def _reason(error: BaseException) -> str:
    return one_line(error) if isinstance(error, BalrError) else f"{type(error).__name__}: {one_line(error)}"
