"""Parts of a page in words and numbers."""

from collections.abc import Mapping
from html import escape
from typing import Any

from balr.evaluation.inspection import Inspection
from balr.evaluation.page import Html, table
from balr.evaluation.pictures import snippet
from balr.evaluation.source import Embeddings

_SHOWN = 30


def worst_errors(curves: Mapping[str, Any], own: Embeddings) -> str:
    """Return the worst errors of an evaluation, to listen to."""
    rows = []
    place = {id_: row for row, id_ in enumerate(own.ids)}
    for error in curves["worst"]:
        sides = [error["enrollment"], error["test"]]
        sounds = [Html(snippet(own, place[side]) if side in place else "") for side in sides]
        kind = "target" if error["label"] else "nontarget"
        rows.append((kind, f"{error['score']:.4f}", sides[0], sounds[0], sides[1], sounds[1]))
    columns = ("trial", "score", "enrollment", "", "test", "")
    text = "Target trials of lowest and nontarget trials of highest score, with up to three seconds of each side."
    shown = table(columns, rows, numbers=("score",))
    return f"<p>{text}</p><details><summary>Show {len(rows)} trials</summary>{shown}</details>"


def suspects(found: Inspection) -> str:
    """Return what an inspection found, by kind."""
    if not found.suspects:
        return "<p>Nothing suspicious was found.</p>"
    by_kind: dict[str, list[tuple[str, ...]]] = {}
    for one in found.suspects:
        by_kind.setdefault(one.kind, []).append((one.id, one.speaker, f"{one.value:.4g}", one.other, one.other_speaker))
    columns = ("utterance", "speaker", "value", "like utterance", "like speaker")
    parts = [
        f"<details><summary>{escape(kind)}: {len(rows):,}</summary>"
        f"{table(columns, rows[:_SHOWN], numbers=columns[2:3])}</details>"
        for kind, rows in by_kind.items()
    ]
    return f"<p>Worth a look; balr evaluate --inspect lists all in suspects.csv.</p>{''.join(parts)}"
