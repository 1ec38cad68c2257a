"""Measure balr beside its peers in one run, in rotation, and write the tables that docs/benchmarks.md shows.

Each contestant of a turn is a process of its own. Peers: WeSpeaker's recipe one utterance at a time in eager fp32, the
same network in ONNX Runtime where that is installed, the libraries that are installed in environments below `--peers`,
and the machine's measured matrix product as the ceiling. Each works with all cores. Machines are shared and noisy: read
ratios within a run, not seconds across runs.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_measure import (
    MODELS,
    OTHER_LIBRARIES,
    RECIPE,
    ROOT,
    Corpus,
    Turns,
    balr_command,
    contestants,
    gflop_per_second_of_audio,
    has_bf16,
    in_rotation,
    make_corpora,
    on_a_long_file,
    whole_process,
    write_model,
)

SLOW_MODELS_SHARE = 5
CHART = ROOT / "docs" / "images" / "benchmarks.svg"

Bars = list[dict[str, str | float]]


def report(models: Sequence[str], seconds: float, repeats: int, peers: Path) -> tuple[str, Bars]:
    """Run everything and return the page as Markdown, and the bars of its chart."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = [
            f"{_machine()}; {seconds:.0f} s of audio a turn ({seconds / SLOW_MODELS_SHARE:.0f} s for ResNet293),",
            f"median of {repeats} turns in rotation, each in a process of its own; untrained weights. x real time, in",
            "brackets the ratio to WeSpeaker's recipe in the same run, then the slowest and the fastest turn.",
        ]
        (folder / "few").mkdir()
        corpora, few = make_corpora(folder, seconds), make_corpora(folder / "few", seconds / SLOW_MODELS_SHARE)
        bars: Bars = []
        for architecture in models:
            checkpoint = write_model(architecture, folder / architecture)
            chosen = few if architecture == "ResNet293" else corpora
            names = contestants(peers)
            turns = in_rotation(names, checkpoint, chosen, repeats=repeats, peers=peers)
            lines += ["", *_show(_table(architecture, chosen, turns))]
            bars += [
                _bar(architecture, name, turns[name].pace(chosen[0], 0)[0]) for name in names if "torch" not in name
            ]
        lines += ["", *_show(_other_libraries(corpora[0], folder, repeats, peers))]
        lines += ["", *_show(_start(corpora[0], folder / models[0], folder, repeats))]
        if models[0].startswith("ResNet"):  # others see an utterance whole
            lines += ["", *_show([on_a_long_file(corpora[0], folder / models[0], folder)])]
        return "\n".join(lines) + "\n", bars


def _show(lines: list[str]) -> list[str]:
    print("\n".join(lines), flush=True)
    return lines


def _table(architecture: str, corpora: Sequence[Corpus], turns: dict[str, Turns]) -> list[str]:
    lines = [f"| {architecture} | {' | '.join(corpus.name for corpus in corpora)} |", "|---|---|---|"]
    for name, taken in turns.items():
        cells = []
        for number, corpus in enumerate(corpora):
            (pace, slowest, fastest), recipe = taken.pace(corpus, number), turns[RECIPE].pace(corpus, number)[0]
            cells.append(f"{pace:.1f} ({pace / recipe:.2f}), {slowest:.1f} to {fastest:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    gflop = gflop_per_second_of_audio(architecture)
    types = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if has_bf16() else {})  # slow where it is emulated
    ceilings = " / ".join(f"{matmul_gflops(dtype) / gflop:.1f}" for dtype in types.values())
    return [*lines, f"| matrix product alone, {' / '.join(types)} | {ceilings} | {ceilings} |"]


def matmul_gflops(dtype: torch.dtype = torch.float32, size: int = 2048, repeats: int = 5) -> float:
    """Measure the processor's matrix product with the faster of torch's two libraries, MKL and oneDNN."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    image, filters = left.reshape(1, size, 1, size), right.reshape(size, size, 1, 1)
    image = image.to(memory_format=torch.channels_last)
    best = float("inf")
    for multiply in (
        lambda: torch.mm(left, right),
        lambda: torch.mkldnn_convolution(image, filters, None, (0, 0), (1, 1), (1, 1), 1),
    ):
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - started)
        best = min(best, statistics.median(times[1:]))
    return 2 * size**3 / best / 1e9


def _other_libraries(corpus: Corpus, folder: Path, repeats: int, peers: Path) -> list[str]:
    """Compare with libraries that other people use: a warm process, and the whole of it with its start."""
    present = [name for name in OTHER_LIBRARIES if (peers / name / "bin" / "python").is_file()]
    lines = [
        "| library, network | x real time once warm | x real time with its start | peak memory |",
        "|---|---|---|---|",
    ]
    for network in dict.fromkeys(OTHER_LIBRARIES[name] for name in present):
        checkpoint = folder / network
        if not checkpoint.is_dir():
            write_model(network, checkpoint)
        names = ["balr", *(name for name in present if OTHER_LIBRARIES[name] == network)]
        turns = in_rotation(names, checkpoint, [corpus], repeats=repeats, peers=peers)
        for name, taken in turns.items():
            pace, slowest, fastest = taken.pace(corpus, 0)
            whole = corpus.seconds / statistics.median(taken.whole_seconds)
            who = f"{name} {taken.version}".strip()
            lines.append(
                f"| {who}, {network} | {pace:.1f}, {slowest:.1f} to {fastest:.1f} | {whole:.1f} "
                f"| {statistics.median(taken.peak_mib):,.0f} MiB |"
            )
    return lines


def _start(corpus: Corpus, checkpoint: Path, folder: Path, repeats: int) -> list[str]:
    """Measure the whole command on one file and on a corpus, beside `import torch` alone."""
    (folder / "one").mkdir()
    (folder / "one" / "0000.wav").write_bytes(corpus.files[0].read_bytes())
    commands = {
        "`import torch` alone": [sys.executable, "-c", "import torch"],
        "`balr extract` on one file": balr_command(folder / "one", checkpoint),
        f"`balr extract` on {corpus.seconds:.0f} s": balr_command(corpus.folder, checkpoint),
    }
    taken = {name: [whole_process(argv, folder) for argv in (argv,) * repeats] for name, argv in commands.items()}
    lines = [f"| whole process, {checkpoint.name} | seconds | peak memory |", "|---|---|---|"]
    for name, turns in taken.items():
        seconds, peak = (statistics.median(values) for values in zip(*turns, strict=True))
        lines.append(f"| {name} | {seconds:.2f} | {peak:,.0f} MiB |")
    return lines


def _bar(architecture: str, name: str, pace: float) -> dict[str, str | float]:
    return {"network": architecture, "who": name.removesuffix(", one by one"), "x real time": round(pace, 1)}


def draw(bars: Bars, path: Path) -> None:
    """Draw who embeds how fast, one group of bars for each network."""
    import altair as alt

    order = list(dict.fromkeys(str(bar["who"]) for bar in bars))
    chart = alt.Chart(alt.Data(values=bars), title="x real time on two cores, longer is faster").mark_bar()
    chart = chart.encode(
        x=alt.X("x real time:Q", title=None),
        y=alt.Y("who:N", sort=order, title=None),
        color=alt.Color("who:N", sort=order, legend=None),
        row=alt.Row("network:N", sort=list(MODELS), title=None, header=alt.Header(labelAngle=0, labelAlign="left")),
    )
    chart.properties(width=420, background="white").save(path)


def _machine() -> str:
    name = str(torch.cpu.get_capabilities().get("cpu_name", platform.machine()))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{name}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def main() -> None:
    """Print the page and, with --write, put it below the first line of rules of a document, and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seconds", type=float, default=400, help="audio a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", type=Path, default=Path("outputs/peers"), help="one environment for each library")
    parser.add_argument("--write", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as bytecode:  # as on a user's machine, where modules are compiled once
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode
        page, bars = report(options.models, options.seconds, options.repeats, options.peers.absolute())
    if options.write:
        kept = options.write.read_text(encoding="utf-8").partition("\n---\n")[0] if options.write.is_file() else ""
        options.write.write_text(f"{kept}\n---\n\n{page}", encoding="utf-8")
        draw(bars, CHART)


if __name__ == "__main__":
    main()
