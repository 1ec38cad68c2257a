"""run.json: which model the embeddings of a folder are of, which corpus, and an entry for each run that worked there.

The invariant kept here: one folder holds the embeddings of one model and one corpus.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from balr.atomic import sha256, whole_file
from balr.checkpoints import DOWNLOADED_FROM, pinned_revision
from balr.errors import BalrError, OutputError, one_line
from balr.records import WHOLE_CORPUS, Shard
from balr.runs.provenance import now

RUN = "run.json"
_OF_SHARDS = "run.*-of-*.json"
_NOT_ENDED = "unknown: killed, or its end could not be written"

Facts = dict[str, Any]


@dataclass
class Record:
    """The content of run.json. `forcing`: a run that embeds all again has not reached its end.

    `corpus` and `store` are the settings that read the one and open the other. A shard writes a file of its own.
    """

    path: Path
    model: Facts = field(default_factory=dict)
    embedding_dim: int | None = None
    corpus_root: str | None = None
    forcing: bool = False
    corpus: Facts = field(default_factory=dict)
    store: Facts = field(default_factory=dict)
    runs: list[Facts] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, shard: Shard = WHOLE_CORPUS) -> Self:
        """Read the record of a folder, an empty one where there is none.

        That of a shard knows the model of the others; that of the whole corpus has the runs of all shards. Raises
        OutputError where a file is not balr's, or shards have embeddings of different models.
        """
        own = cls._read(folder / f"run{shard.tag}.json")
        others = [cls._read(path) for path in (folder / RUN, *sorted(folder.glob(_OF_SHARDS))) if path != own.path]
        for other in others:
            if not own.model:
                names = ("model", "embedding_dim", "corpus_root", "corpus", "store")
                own = replace(own, **{name: getattr(other, name) for name in names})
            elif other.model and not shard.tag and not own.is_of(other.model):
                raise OutputError(
                    f"{folder}: {own.path.name} and {other.path.name} are of different models; "
                    "choose another save_dir, or remove this one and embed all again."
                )
        if not shard.tag:
            runs = [run for record in (own, *others) for run in record.runs]
            own.runs = sorted(
                (run for number, run in enumerate(runs) if run not in runs[:number]),
                key=lambda run: str(run.get("started")),
            )
        return own

    @classmethod
    def _read(cls, path: Path) -> Self:
        if not path.is_file():
            return cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            dim, root = content.get("embedding_dim"), content.get("corpus_root")
            runs = [{str(name): fact for name, fact in run.items()} for run in content.get("runs", [])]
            return cls(
                path,
                dict(content["model"]),
                None if dim is None else int(dim),
                None if root is None else str(root),
                bool(content["forcing"]),
                dict(content.get("corpus", {})),
                dict(content.get("store", {})),
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
                f"{self.path.parent}: holds embeddings of another corpus, in {self.corpus_root}, and this one is in "
                f"{here}; choose another save_dir."
            )

    def refuse_another_channel(self, channel: int | None) -> None:
        """Raise OutputError where the folder was begun with another channel of the corpus; its ids are the same."""
        before = self.corpus.get("channel", channel)
        if self.model and before != channel:
            raise OutputError(
                f"{self.path.parent}: holds embeddings of channel={json.dumps(before)}, and this is channel="
                f"{json.dumps(channel)}; choose another save_dir, or force=true to embed all again."
            )

    def refuse_other_weights(self, checkpoint: Facts) -> None:
        """Raise OutputError where the last run that loaded a model had other weights: those of a `main` that moved."""
        before = next((run["checkpoint"] for run in reversed(self.runs) if run.get("checkpoint")), checkpoint)
        if before.get("weights_sha256") != checkpoint.get("weights_sha256"):
            raise OutputError(
                f"{self.path.parent}: holds embeddings by other weights of {checkpoint.get('source')}, which has moved "
                "on; set embeddings.model.revision to the earlier commit, or choose another save_dir."
            )

    def refuse_another_model(self, model: Facts) -> None:
        """Raise OutputError, with what differs, where the folder holds embeddings of another model or features."""
        if not self.model:
            raise OutputError(
                f"{self.path.parent}: holds embeddings and no {RUN} that says which model they are of; choose another "
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
                f"{self.path.parent}: holds other embeddings: {'; '.join(differing)}; choose another save_dir, or "
                "force=true to embed all again."
            )

    def refuse_another_store(self, store: Facts) -> None:
        """Raise OutputError where the folder holds embeddings in a store of another kind."""
        there, here = (str(one.get("_target_", "")).rpartition(".")[2] for one in (self.store, store))
        if there and there != here:
            raise OutputError(
                f"{self.path.parent}: its store is a {there}, and this one a {here}; choose another save_dir, or "
                "convert it with balr export."
            )

    def is_of(self, model: Facts) -> bool:
        """Return whether the embeddings are of this model, wherever its files are, by any engine."""
        settings = [{**one.get("settings", {}), "engine": None} for one in (self.model, model)]
        return self.model.get("files") == model.get("files") and settings[0] == settings[1]

    @property
    def engine(self) -> str | None:
        """Return the engine that the folder was begun with, None where it was not."""
        return self.model.get("settings", {}).get("engine", "torch") if self.model else None

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
        """Write the file; where it is that of the whole corpus, those of shards can go then. Raises OutputError."""
        names = ("model", "embedding_dim", "corpus_root", "forcing", "corpus", "store", "runs")
        with whole_file(self.path) as file:
            file.write(json.dumps({name: getattr(self, name) for name in names}, indent=2).encode() + b"\n")
        for shard in self.path.parent.glob(_OF_SHARDS) if self.path.name == RUN else ():
            shard.unlink(missing_ok=True)

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
