"""`python -m balr.main`: compose the configuration, check it, run. The one way in; `balr extract` comes here too."""

import sys
from collections.abc import Sequence

from hydra import version
from hydra._internal.utils import _run_hydra
from hydra.core.utils import env_override

from balr.composition import register
from balr.config import config_dir
from balr.errors import one_line
from balr.hydra_errors import explain, parsed
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
    version.setbase("1.3")
    try:
        arguments, parser = parsed(sys.argv[1:] if argv is None else argv)
        with env_override({"HYDRA_FULL_ERROR": "1"}):  # Hydra raises what it would print itself, over many lines
            _run_hydra(arguments, parser, run_job, config_path=str(config_dir()), config_name="config")
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else DONE
    except Exception as error:  # Hydra and launchers raise many kinds
        sys.stderr.write(f"ERROR {one_line(explain(error))}\n")
        return REFUSED
    return DONE


if __name__ == "__main__":
    end_process(main())
