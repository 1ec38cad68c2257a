"""Put a page together: one HTML file that loads nothing, with its figures' data, its library and its sounds inside."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balr.atomic import whole_file
from balr.evaluation.figures import Figure


def page(title: str, runs: Sequence[Mapping[str, Any]], **more: Any) -> str:
    """Return the page of page.html, which says what it shows of each run."""
    import vl_convert
    from jinja2 import Environment, FileSystemLoader

    specs = [
        (f"figure{number}-{figure.name}", figure.spec())
        for number, run in enumerate(runs)
        for figure in [*run["figures"], *run["pictures"]]
    ]
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    files = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=files, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "page.html"
    )
    return template.render(title=title, runs=runs, specs=specs, library=library, **more)


def write_figures(figures: Iterable[Figure], folder: Path, *, prefix: str = "") -> list[Path]:
    """Write each figure as svg, png and pdf, and return the files."""
    import vl_convert

    written = []
    for figure in figures:
        spec = {**figure.spec(), "background": "white"}
        contents = {
            "svg": vl_convert.vegalite_to_svg(spec).encode(),
            "png": vl_convert.vegalite_to_png(spec, scale=2),
            "pdf": vl_convert.vegalite_to_pdf(spec),
        }
        for suffix, content in contents.items():
            written.append(folder / f"{prefix}{figure.name}.{suffix}")
            with whole_file(written[-1]) as file:
                file.write(content)
    return written
