"""`balr …` for the shell: flags become Hydra overrides and go to the same main as `python -m balr.main`."""

import io
import logging
import os
import sys
from dataclasses import fields
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from balr.checkpoints import download_checkpoint, published_table
from balr.config import RunConfig
from balr.errors import BalrError, one_line
from balr.evaluation_commands import evaluate, report
from balr.logs import open_missing_streams
from balr.overrides import split_commas, split_words, to_overrides
from balr.shutdown import end_process
from balr.store_commands import export, merge, verify
from balr.suggestions import complete_override, complete_value, suggest

_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # typer does not export it

app = typer.Typer(
    help="Speaker embeddings of a whole corpus with published WeSpeaker models.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Shown = StrEnum("Shown", ("job", "hydra", "all"))


def main() -> None:
    """Run the `balr` command and end the process with its exit code."""
    end_process(run_command())


def run_command() -> int:
    """Run the `balr` command and return its exit code; an error is one line and exit code 2."""
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
    except OSError as error:
        if error.filename is None:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        where = "what is printed cannot be written" if error.filename is None else one_line(error.filename)
        message = f"{where}: {error.strerror or error}"
    except BalrError as error:
        message = str(error)
    except _USAGE_ERROR as error:
        message = suggest(error, sys.argv[1:])
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {one_line(error)}"
    sys.stderr.write(f"ERROR {message}\n")
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        print(version("balr"))
        raise typer.Exit


@app.callback()
def _balr(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "extract":  # whose log Hydra sets up
        logging.basicConfig(format="%(levelname)s %(message)s")
        logging.getLogger("balr").setLevel(logging.INFO)


@app.command(
    epilog="Exit codes: 0 all embedded; 1 more utterances failed than --max-failures (0), or jobs of a sweep did; 2 "
    "the command could not do its work, and one line says why; 130 interrupted (143 by SIGTERM, 138 by SIGUSR1)."
)
def extract(
    context: typer.Context,
    corpus: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="A csv, folder, audio file, Kaldi folder, tar, parquet or .txt of paths."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Any Hydra overrides, such as embeddings/model=campplus_lm.",
            autocompletion=complete_override,
        ),
    ] = None,
    *,
    force: Annotated[bool | None, typer.Option("--force/--no-force", help="Embed again what is already there.")] = None,
    max_failures: Annotated[
        str | None,
        typer.Option(help="More failed utterances than this, or a share such as 1%, give exit code 1.", metavar="N"),
    ] = None,
    fail_fast: Annotated[
        bool | None, typer.Option("--fail-fast/--no-fail-fast", help="Stop at the first utterance that fails.")
    ] = None,
    save_output: Annotated[bool | None, typer.Option(help="Write embeddings, or only compute and report.")] = None,
    save_dir: Annotated[
        str | None,
        typer.Option(
            help="Where results go [default: outputs/embeddings/CORPUS/MODEL]; save_dir=null: beside the audio.",
            metavar="DIR",
        ),
    ] = None,
    audio_formats: Annotated[
        list[str] | None,
        typer.Option(callback=split_commas, help="File suffixes to take from a folder, as wav,flac.", metavar="SUFFIX"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda, cuda:N or mps.",
            metavar="DEVICE",
            autocompletion=lambda incomplete: complete_value("device", incomplete),
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16 or fp16, where the device supports it.",
            metavar="PRECISION",
            autocompletion=lambda incomplete: complete_value("precision", incomplete),
        ),
    ] = None,
    root_dir: Annotated[
        str | None, typer.Option(help="Where relative paths of a csv or wav.scp start.", metavar="DIR")
    ] = None,
    multirun: Annotated[
        bool,
        typer.Option("--multirun", "-m", help="Sweep: a job for each value; hydra/launcher=joblib_cpu: side by side."),
    ] = False,
    cfg: Annotated[Shown | None, typer.Option(help="Show the composed configuration and stop.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: show interpolated values.")] = False,
    conf: Annotated[
        str | None, typer.Option("--config-dir", help="A folder with more configs, laid out as conf/.", metavar="DIR")
    ] = None,
) -> None:
    """Embed every utterance of a corpus.

    \b
    balr extract voxceleb2/metadata.csv
    balr extract recordings/ --device cuda embeddings/model=campplus_lm
    balr extract recordings/ -m embeddings/model=resnet34_lm,campplus_lm
    """
    if multirun and cfg:
        raise typer.BadParameter("shows one job; leave --multirun out.", param_hint="--cfg")
    source, rest = split_words([word for word in (corpus, *(overrides or ())) if word is not None])
    flags = {field.name: context.params.get(field.name) for field in fields(RunConfig)} | {"input": source}
    hydra_flags = ["--multirun"] * multirun + ["--resolve"] * resolve
    hydra_flags += ["--cfg", cfg.value] if cfg else []
    hydra_flags += ["--config-dir", conf] if conf else []

    from balr.main import main as run

    raise typer.Exit(run([*hydra_flags, *to_overrides(flags), *rest]))


app.command(epilog="Exit codes: 0 all is as it should be; 1 something is not; 2 the folder cannot be verified.")(verify)
app.command(epilog="Exit codes: 0 each utterance has an embedding; 1 some failed or are missing; 2 as for verify.")(
    merge
)
app.command()(export)
app.command()(evaluate)
app.command()(report)


@app.command()
def download(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that balr models lists, or OWNER/NAME.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the weights and their yaml go.")],
) -> None:
    """Fetch a checkpoint for a machine without network.

    \b
    balr download campplus_lm models/campplus
    balr extract recordings/ embeddings.model.model_dir=models/campplus
    """
    files = download_checkpoint(model, folder)
    print(f"{files.weights}\n{files.config}")


@app.command()
def models() -> None:
    """List the checkpoints that ship with balr."""
    print(published_table())


if __name__ == "__main__":
    main()
