"""Measure isograd against what users would pick instead, side by side on this machine, and write the README's table.

Run as `make bench`, or `.venv/bin/python benchmarks/compare.py --repeats 1 --works "64-32-10 @ 64"`. Contenders take turns, so
that a machine that slows down slows all of them; a table cell is the median over the turns.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from contenders import CONTENDERS, entrants
from works import FASHION_MNIST, WORKS, Work, arithmetic_limit, find, machine_rate

from worker.blas import fingerprint

OURS: Final = "isograd"
FEW_ROUNDS: Final = 3.0
"""How much longer the largest network is measured, since an epoch of it takes seconds."""
MARKS: Final = ("<!-- bench:begin -->", "<!-- bench:end -->")

Samples = dict[str, dict[str, list[dict[str, Any]]]]


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Turns of each contender.")
@click.option("--seconds", default=4.0, show_default=True, help="How long a turn is measured.")
@click.option("--works", multiple=True, type=click.Choice([work.name for work in WORKS]), help="Only these works.")
@click.option("--only", multiple=True, type=click.Choice(list(CONTENDERS)), help="Only these contenders.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/bench.json"), show_default=True)
@click.option("--readme", type=click.Path(path_type=Path, exists=True), help="A page whose table to replace.")
def main(repeats: int, seconds: float, works: tuple[str, ...], only: tuple[str, ...], output: Path, readme: Path | None) -> None:
    """Have the contenders take turns at the works."""
    chosen = [find(name) for name in works] if works else list(WORKS)
    if not FASHION_MNIST.is_dir():
        print(f"{FASHION_MNIST} is not there, so Fashion-MNIST is left out; Debian's dataset-fashion-mnist installs it")
        chosen = [work for work in chosen if work.rows is not None]
    samples: Samples = {work.name: {name: [] for name in entrants(work) if not only or name in only} for work in chosen}
    rates: list[float] = []
    for turn in range(repeats):
        rates.append(machine_rate(len(os.sched_getaffinity(0))))
        for work in chosen:
            for name, results in samples[work.name].items():
                results.append(take_turn(name, work, seconds))
                print(f"turn {turn + 1}, {work.name}, {name}: {describe(results[-1])}", flush=True)
    rate = median(rates)
    table = as_table(samples, rate)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine(rate), "samples": samples}, indent=2) + "\n")
    print(f"\n{table}\n\nall samples: {output}")
    if readme is not None:
        text = readme.read_text()
        before, rest = text.split(MARKS[0])
        readme.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def take_turn(name: str, work: Work, seconds: float) -> dict[str, Any]:
    """Return what a contender did in a process of its own; why it failed, if it did."""
    seconds *= FEW_ROUNDS if max(work.layers) > 1024 else 1.0
    command = [sys.executable, str(Path(__file__).with_name("contenders.py")), name, work.name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def describe(result: dict[str, Any]) -> str:
    """Return a result for a person."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    accuracy = f", {result['accuracy']:.2%} right" if "accuracy" in result else ""
    return f"{result['rows_per_second']:,.0f} rows/s{accuracy}"


def medians(results: list[dict[str, Any]], key: str = "rows_per_second") -> float | None:
    """Return the median over the turns that did not fail."""
    values = [result[key] for result in results if key in result]
    return median(values) if values else None


def as_table(samples: Samples, rate: float) -> str:
    """Return the medians as a table in Markdown."""
    names = list(CONTENDERS)
    lines = [
        "| rows/s: work (layers @ batch) | " + " | ".join(names) + " | isograd / best other | share of the limit |",
        "|---|" + "---:|" * (len(names) + 2),
    ]
    for work, results in samples.items():
        found = {name: medians(results.get(name, [])) for name in names}
        ours, others = found[OURS], [value for name, value in found.items() if name != OURS and value is not None]
        ratio = f"{ours / max(others):.2f}" if ours is not None and others else "–"
        share = f"{ours / arithmetic_limit(find(work), rate):.2f}" if ours is not None else "–"
        cells = [_cell(value, medians(results.get(name, []), "accuracy")) for name, value in found.items()]
        lines.append(f"| {work} | " + " | ".join(cells) + f" | {ratio} | {share} |")
    return "\n".join(lines)


def _cell(value: float | None, accuracy: float | None) -> str:
    if value is None:
        return "–"
    return f"{float(f'{value:.3g}'):,.0f}" + (f" ({accuracy:.1%})" if accuracy is not None else "")


def machine(rate: float) -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = ("numpy", "ray", "torch", "scikit-learn")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "operations_a_second": rate,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "fingerprint": fingerprint(),
    }


if __name__ == "__main__":
    main()
