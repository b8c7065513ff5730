"""Write ``docs/matmul_speed.md`` from what ``python -m tests.bench matmul --json RUN`` measured."""

import argparse
import datetime
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.bench.matmul_goals import SET

PAGE = Path(__file__).parents[2] / "docs" / "matmul_speed.md"
_HEAD = """# Products with stored weights: speed on the CPU

Written by two commands (the first says how to fill `PEERS`, which may be left out):

    python -m tests.bench matmul --peers PEERS --json run.json
    python -m tests.bench matmul_page run.json [LATER_RUN.json ...]

All sides alternate in one process: in each round every side makes as many calls as fit into a
fiftieth of a second, once the threads of the side before are asleep; each thread stays on a core of
its own. Microseconds of one product are the median over the rounds; behind them, in brackets, the
median over rounds of their ratio to MatMulNBits in 4 bits by groups of 128 (`accuracy_level` 4), so
below 1 is faster. The set: so many weights of 4096 x 4096 that no cache holds them (512 MiB), read
one after the other, each side in a pair with the same base. `ggml` is llama.cpp's library without
AMX, with its repacked layouts where it has them. The last column: what part of the time the machine
could not do without: bytes over the rate at which it reads so many, or operations over its measured
peak (over 100 %: of those that were measured just before). Of several runs the latest counts, side
by side; ratios are taken within a run."""


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench matmul_page", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="what --json of the benchmark wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(argv)
    day = datetime.date.fromtimestamp(options.runs[-1].stat().st_mtime)
    written = joined([json.loads(run.read_text()) for run in options.runs])
    options.page.write_text("\n".join(page(written, day)) + "\n")


def joined(runs: Sequence[Mapping]) -> Mapping:
    """One account of several runs: what a later one measured stands for what an earlier one did.

    Ratios, and goals, are of sides that were measured in the same run.
    """
    rows = {_key(row, "side"): row for run in runs for row in run["rows"]}
    goals = {_key(goal, "ours", "theirs"): goal for run in runs for goal in run["goals"]}
    return {**runs[0], "rows": list(rows.values()), "goals": list(goals.values())}


def _key(row: Mapping, *names: str) -> tuple:
    return tuple(row[name] for name in ("threads", "shape", "tokens", *names))


def page(written: Mapping, day: datetime.date) -> list[str]:
    """The lines of the page.

    Args:
        written: machine, rooflines, rows and goals, as the benchmark writes them.
        day: of the run.
    """
    rows = written["rows"]
    lines = [_HEAD, "", f"Measured {day} on {written['machine']}."]
    for threads in sorted({row["threads"] for row in rows}, reverse=True):
        lines += ["", _limits(threads, written["rooflines"])]
        for tokens in sorted({row["tokens"] for row in rows}):
            mine = [row for row in rows if (row["threads"], row["tokens"]) == (threads, tokens)]
            lines += ["", f"## {_count(tokens, 'token')}, {_count(threads, 'thread')}", ""]
            lines += _table(mine)
    return [*lines, "", *_goals(written["goals"])]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _limits(threads: int, rooflines: Mapping) -> str:
    roof = rooflines[str(threads)]
    read = ", ".join(f"{rate:.0f} from {size} MiB" for size, rate in roof["GB/s by MiB"].items())
    peak = " and ".join(f"{rate:.0f} in {kind}" for kind, rate in roof["Gop/s"].items())
    return (
        f"With {_count(threads, 'thread')} the machine reads, in GB/s, {read}; its peak is {peak}, "
        "in 10⁹ operations per second."
    )


def _table(rows: Sequence[Mapping]) -> list[str]:
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    by_side: dict[str, dict[str, Mapping]] = {}
    for row in rows:
        by_side.setdefault(row["side"], {})[row["shape"]] = row
    lines = [
        f"| | bits | {' | '.join(shapes)} | of what is possible |",
        f"|---|---:|{'---:|' * len(shapes)}---:|",
    ]
    first = shapes[0]
    ranked = sorted(by_side.items(), key=lambda item: _median(item[1].get(first)))
    for side, cells in ranked:
        one = next(iter(cells.values()))
        shown = " | ".join(_cell(cells.get(shape)) for shape in shapes)
        parts = [f"{cells[shape]['of_roof']:.0%}" for shape in shapes if shape in cells]
        lines.append(f"| {side} | {one['bits']:.3g} | {shown} | {', '.join(parts)} |")
    return lines


def _median(row: Mapping | None) -> float:
    return statistics.median(row["us"]) if row else float("inf")


def _cell(row: Mapping | None) -> str:
    if row is None:
        return "–"
    ratios = [mine / base for mine, base in zip(row["us"], row["base_us"], strict=True)]
    return f"{_median(row):.0f} ({statistics.median(ratios):.2f})"


def _goals(goals: Iterable[Mapping]) -> list[str]:
    lines = [
        "## What we hold ourselves to",
        "",
        "Their time over ours, the faster of theirs where several are meant (median over paired "
        "rounds, least to most).",
        "",
        "| threads | shape | tokens | ours | theirs | theirs / ours | wanted | reached |",
        "|---:|---|---:|---|---|---:|---:|---|",
    ]
    for goal in goals:
        shape = "set of 512 MiB" if goal["shape"] == SET else goal["shape"]
        lines.append(
            f"| {goal['threads']} | {shape} | {goal['tokens']} | {goal['ours']} | {goal['theirs']} "
            f"| {goal['theirs / ours']:.2f} ({goal['range']}) | {goal['wanted']:.2g} "
            f"| {'yes' if goal['reached'] else '**no**'} |"
        )
    return lines
