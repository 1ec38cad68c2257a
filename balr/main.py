"""`python -m balr.main`: compose the configuration, check it, run. The one way in; `balr extract` comes here too."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from balr.composition import register
from balr.config import config_dir
from balr.errors import BalrError, one_line
from balr.hydra_errors import FLAGS_WITH_VALUE, explain, refuse_odd_arguments
from balr.jobs import DONE, REFUSED, run_job
from balr.logs import open_missing_streams
from balr.shutdown import end_process

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run with Hydra's command line, `argv` or the process's own, and return an exit code.

    0: every utterance has an embedding. 1: more than `max_failures` failed, or jobs of a sweep did. 2: the command
    could not do its work. 130: interrupted; 143: stopped by SIGTERM; 138: at a time limit, by SIGUSR1 or SIGUSR2.
    """
    register()
    open_missing_streams()
    with _argv(argv), _whole_exceptions():
        try:
            refuse_odd_arguments(*_flags_and_overrides(sys.argv[1:]))
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(run_job)()
        except (BalrError, HydraException, OmegaConfBaseException, YAMLError, OSError) as error:
            sys.stderr.write(f"ERROR {one_line(explain(error))}\n")
            return REFUSED
        except KeyboardInterrupt:
            return INTERRUPTED
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else DONE
        except Exception as error:  # Hydra and launchers raise many kinds
            message = shorten(f"{type(error).__name__}: {one_line(error)}", 400)  # submitit's hold the log of the job
            sys.stderr.write(f"ERROR {message}\n")
            return REFUSED
    return DONE


@contextmanager
def _argv(argv: Sequence[str] | None) -> Iterator[None]:
    kept = sys.argv
    sys.argv = [kept[0], *_flags_first(kept[1:] if argv is None else argv)]
    try:
        yield
    finally:
        sys.argv = kept


def _flags_first(argv: Sequence[str]) -> list[str]:
    """Let Hydra's flags stand anywhere among the overrides; its own parser wants the overrides in one piece."""
    flags, overrides = _flags_and_overrides(argv)
    return [*flags, *overrides]


def _flags_and_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    flags: list[str] = []
    overrides: list[str] = []
    for number, word in enumerate(argv):
        takes_next = number > 0 and argv[number - 1] in FLAGS_WITH_VALUE
        (flags if takes_next or word.startswith("-") else overrides).append(word)
    return flags, overrides


@contextmanager
def _whole_exceptions() -> Iterator[None]:
    """Let Hydra raise what it would print itself, over many lines; this variable is its switch for that."""
    kept = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if kept is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = kept


if __name__ == "__main__":
    end_process(main())
