"""failures.csv: the utterances that got no embedding, and why."""

from collections.abc import Collection, Iterable, Iterator, Set
from dataclasses import asdict, fields
from pathlib import Path

from balr.records import WHOLE_CORPUS, Failure, Shard, Utterance
from balr.stores.commit_log import CommitLog

FAILURES = "failures.csv"
_OF_SHARDS = "failures.*-of-*.csv"
_COLUMNS = tuple(column.name for column in fields(Failure))


class FailureLog:
    """Append failures as they happen; each is in the file before its batch is in the manifest.

    So an utterance that neither file lists belongs to a batch that a kill cut short. A shard has a list of its own, and
    that of the whole corpus takes in those of all shards.
    """

    def __init__(self, folder: Path, utterances: Iterable[Utterance], shard: Shard = WHOLE_CORPUS) -> None:
        self._log = CommitLog(folder / f"failures{shard.tag}.csv", _COLUMNS)
        self.path = self._log.path
        self._order = {utterance.id: number for number, utterance in enumerate(utterances)}
        self._merged = [] if shard.tag else [log for log in _logs_in(folder) if log.path != self.path]
        self._rows = {
            row["id"]: row for log in (self._log, *self._merged) for row in log.read() if row["id"] in self._order
        }

    @property
    def ids(self) -> Set[str]:
        """Return the ids that failed, in this run or an earlier one."""
        return self._rows.keys()

    def clear(self) -> None:
        """Forget what failed in earlier runs."""
        self._rows.clear()
        self._log.write(())
        for log in self._merged:
            log.remove()

    def add(self, failure: Failure) -> None:
        """Append a failure. Raises OutputError."""
        self._rows[failure.id] = asdict(failure)
        if self._log.has_begun:
            self._log.append([asdict(failure)], durably=False)
        else:
            self._log.write(self._rows.values())

    def finish(self, completed: Collection[str]) -> None:
        """Put the list into the order of the corpus, without what is completed; then the lists of shards can go."""
        rows = [row for id_, row in self._rows.items() if id_ not in completed]
        if rows:
            self._log.write(sorted(rows, key=lambda row: self._order[row["id"]]))
        else:
            self._log.remove()
        for log in self._merged:
            log.remove()


def read_failures(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of failures.csv, and of the lists of shards. Raises OutputError."""
    for log in _logs_in(folder):
        yield from log.read()


def _logs_in(folder: Path) -> list[CommitLog]:
    return [CommitLog(path, _COLUMNS) for path in (folder / FAILURES, *sorted(folder.glob(_OF_SHARDS)))]
