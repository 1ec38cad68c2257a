"""Put a page together: one HTML file that loads nothing, with its figures' data, its library and its sounds inside.

All that comes from a corpus is escaped: ids and paths are anybody's text.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from balr.atomic import whole_file
from balr.evaluation.figures import Figure

_WIDE = ("similarity", "map")


@dataclass(frozen=True)
class Section:
    """Hold a heading with what comes below it, as HTML, and figures in between."""

    html: str
    figures: tuple[Figure, ...] = ()


def page(title: str, sections: Iterable[Section]) -> str:
    """Return the page."""
    import vl_convert

    body = [f"<h1>{escape(title)}</h1>"]
    specs: list[tuple[str, dict[str, Any]]] = []
    for section in sections:
        body.append(section.html)
        drawn = []
        for figure in section.figures:
            name = f"figure{len(specs)}"
            specs.append((name, figure.spec()))
            kind = ' class="wide"' if figure.name in _WIDE else ""
            drawn.append(
                f'<figure{kind}><h3>{escape(figure.title)}</h3><div id="{name}"></div>'
                f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
            )
        body.append(f'<div class="figures">{"".join(drawn)}</div>' if drawn else "")
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Template(text).substitute(
        title=escape(title),
        body="\n".join(body),
        library=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"),
        figures=json.dumps(specs).replace("<", "\\u003c"),  # which keeps it from ending the script
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> str:
    """Return a table of plain text; the columns named in `numbers` are set to the right."""
    kinds = [' class="n"' if column in numbers else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(kinds, columns, strict=True))
    lines = [
        "".join(
            f"<td{kind}>{cell if isinstance(cell, Html) else escape(cell)}</td>"
            for kind, cell in zip(kinds, row, strict=True)
        )
        for row in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


class Html(str):
    """Mark text that is HTML already."""

    __slots__ = ()


def big_numbers(numbers: Iterable[tuple[str, str]]) -> str:
    """Return numbers to see at a glance, each with what it is."""
    cards = (f'<div class="number"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in numbers)
    return f'<div class="numbers">{"".join(cards)}</div>'


def write_figures(figures: Iterable[Figure], folder: Path, *, prefix: str = "") -> list[Path]:
    """Write each figure as svg, png and pdf, and return the files."""
    import vl_convert

    written = []
    for figure in figures:
        spec = {**figure.spec(), "background": "white"}
        svg = vl_convert.vegalite_to_svg(spec).encode()
        for suffix, content in (
            ("svg", svg),
            ("png", vl_convert.vegalite_to_png(spec, scale=2)),
            ("pdf", vl_convert.vegalite_to_pdf(spec)),
        ):
            written.append(folder / f"{prefix}{figure.name}.{suffix}")
            with whole_file(written[-1]) as file:
                file.write(content)
    return written
