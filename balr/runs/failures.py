"""failures.csv: the utterances that got no embedding, and why."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

from balr.records import Failure, Utterance
from balr.stores.commit_log import CommitLog, Row

FAILURES = "failures.csv"
_COLUMNS = tuple(column.name for column in fields(Failure))


class FailureLog:
    """Append failures as they happen; each is in the file before its batch is in the manifest.

    So an utterance that neither file lists belongs to a batch that a kill cut short.
    """

    def __init__(self, folder: Path, utterances: Iterable[Utterance]) -> None:
        self._log = CommitLog(folder / FAILURES, _COLUMNS)
        self._order = {utterance.id: number for number, utterance in enumerate(utterances)}
        self._rows: dict[str, Row] = {row["id"]: row for row in self._log.read() if row["id"] in self._order}

    @property
    def ids(self) -> Collection[str]:
        """Return the ids that failed, in this run or an earlier one."""
        return self._rows.keys()

    def clear(self) -> None:
        """Forget what failed in earlier runs."""
        self._rows.clear()
        self._log.begin(())

    def add(self, failure: Failure) -> None:
        """Append a failure. Raises OutputError."""
        self._rows[failure.id] = asdict(failure)
        if not self._log.has_begun:
            self._log.begin(self._rows.values())
        else:
            self._log.append([self._rows[failure.id]], durably=False)

    def finish(self, completed: Collection[str]) -> None:
        """Put the list into the order of the corpus, without what is completed."""
        rows = [row for id_, row in self._rows.items() if id_ not in completed]
        if rows:
            self._log.finish(sorted(rows, key=lambda row: self._order[row["id"]]))
        else:
            self._log.remove()


def read_failures(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of failures.csv, if there is one. Raises OutputError."""
    return CommitLog(folder / FAILURES, _COLUMNS).read()
