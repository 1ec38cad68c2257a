"""`balr verify`, `balr merge` and `balr export`: the commands that work on the embeddings of earlier runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

_SHOWN_OF_A_KIND = 20
SaveDir = Annotated[str, typer.Argument(metavar="SAVE_DIR", help="The folder of a run.")]


def verify(
    save_dir: SaveDir,
    corpus: Annotated[
        str | None, typer.Argument(metavar="[INPUT]", help="The corpus that it should hold the embeddings of.")
    ] = None,
    *,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Take what is wrong off metadata.csv, so that the next run embeds it again."),
    ] = False,
) -> None:
    """Read every embedding of a folder and compare it with its lists, its record and the corpus.

    INPUT is read as the run read it, with its channel, root_dir and audio_formats.

    balr verify outputs/embeddings/voxceleb2/resnet34_lm voxceleb2/metadata.csv
    """
    from balr.runs import verify as checks
    from balr.runs.folder import corpus_of
    from balr.runs.record import Record

    folder = Path(save_dir).expanduser()
    verdict = checks.verify(folder, corpus_of(Record.of(folder), corpus) if corpus else None)
    print(verdict.as_text(most_of_a_kind=_SHOWN_OF_A_KIND if sys.stdout.isatty() else None))
    if forget:
        count = checks.forget(folder, verdict)
        print(f"{count:,} taken off the list; the next run embeds what the corpus lists")
    raise typer.Exit(1 if verdict.findings else 0)


def merge(save_dir: SaveDir) -> None:
    """Put together what shards wrote into one folder; the last shard to finish does this by itself.

    balr merge outputs/embeddings/voxceleb2/resnet34_lm
    """
    from balr.extraction import merge as put_together

    embedded, failed, missing = put_together(Path(save_dir).expanduser().absolute())
    print(f"{embedded:,} embedded, {failed:,} failed, {missing:,} missing")
    raise typer.Exit(1 if failed or missing else 0)


def export(
    save_dir: SaveDir,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder; for npz and csv a new file.")],
    *,
    to: Annotated[str, typer.Option(help="files, parquet, kaldi, npz (arrays ids and data) or csv.", metavar="FORMAT")],
    normalize: Annotated[
        str | None, typer.Option(help="l2: divide each embedding by its Euclidean norm, last of all.", metavar="l2")
    ] = None,
    subtract_mean: Annotated[
        str | None,
        typer.Option(help="Subtract a mean first: self (of SAVE_DIR), or a .npy or .txt file.", metavar="self|FILE"),
    ] = None,
    per_speaker: Annotated[
        bool, typer.Option("--per-speaker", help="One embedding for each speaker: the mean.")
    ] = False,
) -> None:
    """Write the embeddings of a folder in another format.

    \b
    balr export outputs/embeddings/voxceleb2/resnet34_lm kaldi/vox2 --to kaldi
    balr export outputs/vox2 speakers.npz --to npz --per-speaker --normalize l2
    """
    from balr.export import export as convert

    if normalize not in (None, "l2"):
        raise typer.BadParameter(f"{normalize}: l2 is expected.", param_hint="--normalize")
    source, target = Path(save_dir).expanduser(), Path(out).expanduser()
    count = convert(source, target, to=to, normalize=normalize is not None, mean=subtract_mean, per_speaker=per_speaker)
    print(f"{count:,} embeddings written to {target}")
