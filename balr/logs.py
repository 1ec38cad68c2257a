"""Handlers of log lines, which Hydra sets up from conf/hydra/job_logging, and standard streams that may be closed."""

import logging
import os
import sys
from contextlib import suppress

from balr.errors import redacted


def open_missing_streams() -> None:
    """Replace a closed standard stream by an empty one: the next file opened would be taken for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def name_lines(job: str) -> None:
    """Begin each line on the terminal with the name of the job that writes it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, TerminalHandler):
            handler.job = job


class TerminalHandler(logging.Handler):
    """Write log lines to the current stderr, above a progress bar; tracebacks go to the log file only."""

    job = ""

    def emit(self, record: logging.LogRecord) -> None:
        who = f"{self.job}: " if self.job else ""
        with suppress(OSError):  # its reader has gone, or its disk is full: the log file has the line
            sys.stderr.write(redacted(f"{record.levelname} {who}{record.getMessage()}\n"))


class LogFile(logging.FileHandler):
    """Write the log of a run; a full disk is reported once, by what needs the disk, not at every line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Do without the line."""

    def flush(self) -> None:
        """Write what is buffered, if the disk has room."""
        with suppress(OSError):  # or logging would not close the file
            super().flush()


class PlainFormatter(logging.Formatter):
    """Format log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of a record."""
        return redacted(super().format(record))
