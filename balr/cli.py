"""`balr …` for the shell: flags become Hydra overrides and go to the same main as `python -m balr.main`."""

import io
import os
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from balr.checkpoints import published_checkpoints
from balr.config import config_dir
from balr.errors import one_line
from balr.logs import open_missing_streams

_FULL_WIDTH = 160
_SHOWN_OF_A_KIND = 20

app = typer.Typer(
    help="Speaker embeddings of a whole corpus with published WeSpeaker models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


class Shown(StrEnum):
    """What `--cfg` can show."""

    job = "job"
    hydra = "hydra"
    all = "all"


def main() -> None:
    """Run the `balr` command."""
    open_missing_streams()
    try:
        app()
    except OSError as error:
        if error.filename is not None:
            sys.stderr.write(f"ERROR {one_line(error.filename)}: {error.strerror or error}\n")
            raise SystemExit(2) from None
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr.write(f"ERROR what is printed cannot be written: {error.strerror or error}\n")
        raise SystemExit(2) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        print(version("balr"))
        raise typer.Exit


@app.callback()
def _balr(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    pass


def _complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    # bash takes GROUP=NAME for three words, and the last one away when it is only the sign.
    words = [word for word in (ctx.params.get("corpus"), *(ctx.params.get("overrides") or ())) if word and word != "="]
    if words and (names := _names(words[-1])):
        return [name for name in names if name.startswith(incomplete)]
    group, found, _ = incomplete.partition("=")
    if found:
        return [f"{group}={name}" for name in _names(group) if f"{group}={name}".startswith(incomplete)]
    keys = (
        "embeddings/model=",
        "data=",
        "device=",
        "precision=",
        "max_failures=",
        "fail_fast=true",
        "save_dir=",
        "force=true",
        "hydra/launcher=joblib_cpu",
    )
    return [key for key in keys if key.startswith(incomplete)]


def _names(group: str) -> list[str]:
    folder = config_dir() / group
    return sorted(path.stem for path in folder.glob("[!_]*.yaml")) if folder != config_dir() else []


@app.command(
    epilog="Exit codes: 0 all embedded; 1 more utterances failed than --max-failures (0), or jobs of a sweep did; 2 "
    "the command could not do its work, and one line says why; 130 interrupted (143 by SIGTERM, 138 by SIGUSR1)."
)
def extract(
    corpus: Annotated[
        str | None,
        typer.Argument(metavar="INPUT", help="A csv, a folder, an audio file, a wav.scp or a .txt of paths."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Any Hydra overrides, such as embeddings/model=campplus_lm.",
            autocompletion=_complete_override,
        ),
    ] = None,
    *,
    force: Annotated[bool | None, typer.Option("--force/--no-force", help="Embed again what is already there.")] = None,
    max_failures: Annotated[
        str | None,
        typer.Option(help="More failed utterances than this, or than a share such as 1%, give exit code 1."),
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
        typer.Option(help="File suffixes that a folder is searched for; repeat or separate by commas."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16, where the device has units for it.")
    ] = None,
    root_dir: Annotated[
        str | None, typer.Option(help="Where relative paths of a csv or wav.scp start.", metavar="DIR")
    ] = None,
    multirun: Annotated[
        bool,
        typer.Option(
            "--multirun",
            "-m",
            help="Sweep: one job for each listed value; hydra/launcher=joblib_cpu runs them side by side.",
        ),
    ] = False,
    cfg: Annotated[Shown | None, typer.Option(help="Show the composed configuration and stop.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: show interpolated values.")] = False,
    conf: Annotated[
        str | None, typer.Option("--config-dir", help="A folder with more configs, laid out as conf/.", metavar="DIR")
    ] = None,
) -> None:
    """Embed every utterance of a corpus.

    [bold]balr extract voxceleb2/metadata.csv[/bold]

    [bold]balr extract recordings/ --device cuda embeddings/model=campplus_lm[/bold]

    [bold]balr extract recordings/ -m embeddings/model=resnet34_lm,campplus_lm[/bold]
    """
    if multirun and cfg:
        raise typer.BadParameter(
            "cannot be combined with --multirun; leave that out to see one job.", param_hint="--cfg"
        )
    rest = list(overrides or [])
    if corpus is not None and _is_override(corpus):
        rest.insert(0, corpus)
        corpus = None
    twice = [word for word in rest if corpus is not None and word.startswith("input=")]
    if twice:
        raise typer.BadParameter(f"{corpus!r} and {twice[0]!r}: one input at a time.", param_hint="INPUT")
    flags: dict[str, Any] = {
        "input": corpus,
        "force": force,
        "max_failures": max_failures,
        "fail_fast": fail_fast,
        "save_output": save_output,
        "save_dir": save_dir,
        "audio_formats": _split(audio_formats),
        "device": device,
        "precision": precision,
        "root_dir": root_dir,
    }
    hydra_flags = ["--multirun"] * multirun + ["--resolve"] * resolve
    hydra_flags += ["--cfg", cfg.value] if cfg else []
    hydra_flags += ["--config-dir", conf] if conf else []

    from balr.main import main as run

    raise typer.Exit(run([*hydra_flags, *to_overrides(flags), *rest]))


@app.command(epilog="Exit codes: 0 all is as it should be; 1 something is not; 2 the folder cannot be verified.")
def verify(
    save_dir: Annotated[str, typer.Argument(metavar="SAVE_DIR", help="The folder of a run.")],
    corpus: Annotated[
        str | None, typer.Argument(metavar="[INPUT]", help="The corpus that it should hold the embeddings of.")
    ] = None,
    *,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", help="Take what is wrong off metadata.csv, so that the next run of the same command embeds it."
        ),
    ] = False,
    audio_formats: Annotated[
        list[str] | None,
        typer.Option(help="File suffixes that a folder is searched for; repeat or separate by commas."),
    ] = None,
    root_dir: Annotated[
        str | None, typer.Option(help="Where relative paths of a csv or wav.scp start.", metavar="DIR")
    ] = None,
) -> None:
    """Read every embedding of a folder and compare it with its lists, its record and the corpus.

    [bold]balr verify outputs/embeddings/voxceleb2/resnet34_lm voxceleb2/metadata.csv[/bold]
    """
    from balr.data.corpus import Corpus
    from balr.data.folders import AUDIO_FORMATS
    from balr.errors import BalrError
    from balr.runs import verify as checks

    folder = Path(save_dir).expanduser()
    formats = _split(audio_formats) or AUDIO_FORMATS
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        found = Corpus.from_path(corpus, root_dir=root_dir, audio_formats=formats) if corpus else None
        verdict = checks.verify(folder, found)
        print(verdict.as_text(most_of_a_kind=_SHOWN_OF_A_KIND if sys.stdout.isatty() else None))
        if forget:
            print(
                f"{checks.forget(folder, verdict):,} taken off the list; the next run of the same command embeds them"
            )
    except BalrError as error:
        sys.stderr.write(f"ERROR {error}\n")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(1 if verdict.findings else 0)


@app.command()
def models() -> None:
    """List the checkpoints that ship with balr."""
    # A program that reads the table gets every column; so does a terminal that is wide enough.
    console = Console() if sys.stdout.isatty() else Console(width=_FULL_WIDTH)
    wide = console.width >= _FULL_WIDTH
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("embeddings/model=", "dim", "params", "EER O / E / H", "licence"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("dim", "params") else "left")
    if wide:
        for name in ("architecture", "trained on", "repository"):
            table.add_column(name, no_wrap=True)
    for checkpoint in sorted(published_checkpoints().values(), key=lambda c: c.name):
        eer = " / ".join(f"{rate:.2f}" for rate in checkpoint.eer_percent) if checkpoint.eer_percent else "-"
        row = (str(checkpoint.embedding_dim), f"{checkpoint.parameters_millions:.1f} M", eer, checkpoint.licence)
        more = (checkpoint.architecture, checkpoint.trained_on, checkpoint.model_repo) if wide else ()
        table.add_row(checkpoint.name, *row, *more)
    console.print(table)
    print("EER: % on VoxCeleb1-O, -E, -H as WeSpeaker published it, cosine scores without normalisation.")


def to_overrides(flags: dict[str, Any]) -> list[str]:
    """Translate the flags that were given to Hydra overrides, quoted so that any path means itself."""
    return [f"{key}={_quoted(value)}" for key, value in flags.items() if value is not None]


def _quoted(value: bool | str | Sequence[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return f"[{','.join(_quoted(item) for item in value)}]"
    # OmegaConf reads ${ as an interpolation unless escaped, Hydra a quote as the end; backslashes before either count.
    for special in (r"\$\{", "'"):
        value = re.sub(rf"(\\*)({special})", r"\1\1\\\2", value)
    trailing = len(value) - len(value.rstrip("\\"))
    return f"'{value}{chr(92) * trailing}'"


def _split(values: Sequence[str] | None) -> list[str] | None:
    if not values:
        return None
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _is_override(text: str) -> bool:
    return "=" in text and not Path(text).exists()


if __name__ == "__main__":
    main()
