"""`balr evaluate` and `balr report`: what the embeddings of earlier runs are worth, and a page to look at."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from balr.config import EvaluationConfig
from balr.store_commands import SaveDir


def evaluate(
    context: typer.Context,
    save_dir: SaveDir,
    trials: Annotated[
        str | None,
        typer.Argument(
            metavar="[TRIALS]",
            help="A csv (enrollment,test,label), VoxCeleb (1 a b) or Kaldi (a b target) list [default: all pairs].",
        ),
    ] = None,
    *,
    mean: Annotated[
        str | None,
        typer.Option(help="Mean to subtract first: self, none, that of a SAVE_DIR or file.", metavar="self|none|PATH"),
    ] = None,
    cohort: Annotated[
        str | None, typer.Option(help="Normalise scores (AS-norm) by the speakers of this folder.", metavar="SAVE_DIR")
    ] = None,
    top_n: Annotated[
        int | None, typer.Option(help="Speakers of the cohort that count, the nearest [default: 300].")
    ] = None,
    enrollment_map: Annotated[
        str | None,
        typer.Option(help="Models of several utterances: `model utterance [utterance ...]`.", metavar="FILE"),
    ] = None,
    enrollment: Annotated[
        str | None, typer.Option(help="Their average: mean, or mean_of_unit.", metavar="mean|mean_of_unit")
    ] = None,
    allow_missing: Annotated[
        bool | None, typer.Option("--allow-missing", help="Leave out trials of ids that have no embedding.")
    ] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Draws of speakers for intervals [default: 200].")] = None,
    scores: Annotated[str | None, typer.Option(help="csv, parquet or none.", metavar="FORMAT")] = None,
    inspect: Annotated[
        bool,
        typer.Option("--inspect", help="Look for label errors, duplicates and odd recordings instead: suspects.csv."),
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="Where results go [default: SAVE_DIR/evaluation/TRIALS].", metavar="DIR")
    ] = None,
) -> None:
    """Score trials and show error rates, costs and thresholds.

    \b
    balr evaluate outputs/embeddings/voxceleb1/resnet34_lm veri_test2.txt
    balr evaluate outputs/embeddings/voxceleb2-metadata/resnet34_lm
    balr evaluate outputs/vox1 O.txt --mean outputs/vox2 --cohort outputs/vox2
    balr evaluate outputs/embeddings/voxceleb2-metadata/resnet34_lm --inspect
    """
    given = {name: value for name, value in context.params.items() if name not in ("save_dir", "inspect")}
    settings = EvaluationConfig(**{name: value for name, value in given.items() if value is not None})

    from balr.evaluate import as_text
    from balr.evaluate import evaluate as judge

    if inspect:
        _inspect(Path(save_dir).expanduser(), settings)
        return
    judgement, folder = judge(Path(save_dir).expanduser(), settings)
    print(as_text(judgement, folder))


def report(
    save_dirs: Annotated[list[str], typer.Argument(metavar="SAVE_DIR...", help="The folders of one or several runs.")],
    *,
    out: Annotated[
        str | None,
        typer.Option(help="The page [default: report.html in the folder, or above several].", metavar="FILE"),
    ] = None,
    figures: Annotated[
        str | None, typer.Option(help="Write each figure there as svg, png and pdf, too.", metavar="DIR")
    ] = None,
) -> None:
    """Write a page to look at: one HTML file that needs no network.

    \b
    balr report outputs/embeddings/voxceleb2-metadata/resnet34_lm
    balr report outputs/embeddings/voxceleb2-metadata/* --figures paper/figures
    """
    named = [Path(folder).expanduser() for folder in save_dirs]
    folders = [one for one in named if one.suffix != ".html" or not one.is_file()] or named  # `*` names an earlier page
    above = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))

    from balr.report import report as write
    from balr.runs.summary import relative

    page = Path(out).expanduser() if out else above / "report.html"
    for file in write(folders, page, figures=Path(figures).expanduser() if figures else None):
        print(relative(file.absolute()))


def _inspect(save_dir: Path, settings: EvaluationConfig) -> None:
    if settings.trials:
        raise typer.BadParameter("looks at the corpus without trials; leave TRIALS out.", param_hint="--inspect")

    from balr.evaluate import inspect
    from balr.runs.summary import relative

    found, path = inspect(save_dir, mean=settings.mean, out=Path(settings.out).expanduser() if settings.out else None)
    if found.neighbour_accuracy is not None:
        print(f"nearest utterance of another session is of the same speaker: {100 * found.neighbour_accuracy:.1f}%")
    for kind, count in Counter(one.kind for one in found.suspects).items():
        first = next(one for one in found.suspects if one.kind == kind)
        like = first.other or first.other_speaker
        print(f"{kind:30}  {count:>7,}  first: {first.id or first.speaker}{f' like {like}' if like else ''}")
    print(f"list  {relative(path)}")
