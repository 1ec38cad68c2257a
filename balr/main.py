"""`python -m balr.main`: compose the configuration, check it, run. The one way in; `balr extract` comes here too."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from balr.composition import check, register
from balr.config import RunConfig, config_dir
from balr.errors import BalrError, one_line
from balr.hydra_errors import FLAGS_WITH_VALUE, explain, refuse_odd_arguments
from balr.logs import name_lines, open_missing_streams
from balr.runs.summary import Summary
from balr.shutdown import Stop, end_with_process, stop_on_signals
from balr.sweeps import SOME_FAILED, JobResult

log = logging.getLogger(__name__)

DONE, REFUSED, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run with Hydra's command line, `argv` or the process's own, and return an exit code.

    0: every utterance has an embedding. 1: more than `max_failures` failed, or jobs of a sweep did. 2: the command
    could not do its work. 130: interrupted; 143 and 138: stopped by SIGTERM and SIGUSR1.
    """
    register()
    open_missing_streams()
    with _argv(argv), _whole_exceptions():
        try:
            refuse_odd_arguments(*_flags_and_overrides(sys.argv[1:]))
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(job)()
        except (BalrError, HydraException, OmegaConfBaseException, YAMLError, OSError) as error:
            sys.stderr.write(f"ERROR {one_line(explain(error))}\n")
            return REFUSED
        except KeyboardInterrupt:
            return INTERRUPTED
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else DONE
        except Exception as error:  # whatever else a value can make Hydra or a launcher raise
            sys.stderr.write(f"ERROR {type(error).__name__}: {one_line(error)}\n")
            return REFUSED
    return DONE


def job(cfg: DictConfig) -> None:
    """Do one job of Hydra's and end the process with its exit code; a job of a sweep leaves its result instead."""
    register()  # again, as a job of a parallel sweep runs in a process of its own
    is_elsewhere, sweep = multiprocessing.parent_process() is not None, os.getppid()
    if is_elsewhere:
        end_with_process(sweep, signal.SIGTERM)
    is_of_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with stop_on_signals() as stop:
        result = _run(cfg, stop, is_of_sweep=is_of_sweep)
    if is_elsewhere and os.getppid() != sweep:  # a launcher's process would wait for more work, and none will come
        os._exit(result.exit_code)
    if is_of_sweep and (stop.exit_code is None or is_elsewhere):
        result.write(_run_dir())
    elif result.exit_code:
        raise SystemExit(result.exit_code)


def _run(cfg: DictConfig, stop: Stop, *, is_of_sweep: bool) -> JobResult:
    name = f"job {HydraConfig.get().job.num}" if is_of_sweep else "embedding"
    try:
        settings = check(cfg)
        if is_of_sweep and settings.save_dir:
            name = "/".join(Path(settings.save_dir).parts[-2:])
            name_lines(name)

        from balr.extraction import run  # not for --help or --cfg

        summary = run(settings, run_dir=_run_dir(), stop=stop, job=name)
    except (BalrError, OmegaConfBaseException) as error:
        log.error("%s", one_line(error))
        return JobResult.of(name, REFUSED, one_line(error))
    except Exception as error:
        reason = f"unexpected {type(error).__name__}: {one_line(error)}"
        log.exception("%s (traceback in %s)", reason, _run_dir() / f"{HydraConfig.get().job.name}.log")
        return JobResult.of(name, REFUSED, reason)
    return JobResult.of(name, _close(settings, summary, stop), summary)


def _close(settings: RunConfig, summary: Summary, stop: Stop) -> int:
    """Log the summary of a run and return its exit code."""
    if stop.exit_code is not None:
        way_on = "the same command goes on from there" if settings.save_output else "nothing was to be saved"
        log.error("stopped by %s; %s\n%s", stop.signal_name, way_on, summary.as_text())
        return stop.exit_code
    log.info("%s\n%s", "stopped at the first failure" if summary.not_reached else "done", summary.as_text())
    if summary.is_tolerated(str(settings.max_failures)):
        return DONE
    log.warning("%d failed, and max_failures is %s: exit code %d", summary.failed, settings.max_failures, SOME_FAILED)
    return SOME_FAILED


def _run_dir() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


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
    from balr.main import main as _main  # under its own name, so that jobs of a sweep can be sent to other processes

    sys.exit(_main())
