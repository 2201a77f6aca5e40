# SPDX-License-Identifier: Apache-2.0
"""Does `featherweight fit` find something better than the demo's own recipe on the demo data within five minutes?

    python benchmarks/fit.py                      what is missing of three seeds, about five minutes each
    python benchmarks/fit.py --time 30m --seeds 1
    python benchmarks/fit.py --table              no searching: the table alone

Each search varies the steps of the recipe `demo`, carries it out as it is written too, and races both with all that is
worth having. It is asked for the most accurate model that takes no longer than the recipe's. The recipe is beaten if
the one model that is picked, by the validation part, is more accurate on the test part at a latency that is not longer,
or faster at an accuracy that is not less; what else was found does not count. Kept in docs/measured/fit.json;
docs/fit.md gets its table from there. Take the times with nothing beside them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featherweight import files, measure
from featherweight.search import Search, fit

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "measured" / "fit.json", ROOT / "docs" / "fit.md"
BLOCK = re.compile(r"(<!-- fit:begin -->\n)(.*?)(<!-- fit:end -->)", re.DOTALL)
KEPT = ("says", "top1", "test", "latency_ms", "size_bytes", "macs", "images", "against_start", "against_written")


def searched(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One search, as plain data."""
    found = fit(
        "vit_digits", "digits", latency=arguments.latency, max_drop=arguments.max_drop, runtime=arguments.runtime,
        time=arguments.time, recipe=arguments.recipe, project=arguments.output, seed=seed,
        name=f"fit-{arguments.runtime}-{arguments.time}-{seed}", overrides=arguments.set,
        progress=lambda event: print({k: event[k] for k in event if k in SHOWN}),
    )  # fmt: skip
    return told(found, seed, arguments)


SHOWN = ("event", "text", "says", "images", "agreement", "top1", "latency_ms")


def told(found: Search, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    def short(item: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if item is None else {key: item[key] for key in KEPT if key in item}

    return {
        "seed": seed,
        "time": arguments.time,
        "runtime": arguments.runtime,
        "asked": asked(arguments),
        "points": len(found.points),
        "pick": short(found.pick),
        "start": short(found.start),
        "written": short(found.written),
        "front": [short(item) for item in found.front],
        "machine": measure.machine(),
    }


def asked(arguments: argparse.Namespace) -> str:
    """The budget as it is given on a command line."""
    return " ".join(f"--{name} {value}" for name, value in
                    (("latency", arguments.latency), ("max-drop", arguments.max_drop)) if value)  # fmt: skip


def beats(item: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """In which way a model beats the recipe, or "": faster beyond doubt and not worse, or better and not slower."""
    if "against_written" not in item:
        return ""  # the recipe itself
    low, high = item["against_written"]["interval"]
    gain = item["test"]["top1"] - written["test"]["top1"]
    if low > 1.0 and gain >= 0:
        return f"{item['against_written']['ratio']:.2f}× faster, {100 * gain:+.1f} points"
    if gain > 0 and high >= 1.0:
        return f"{100 * gain:+.1f} points, {item['against_written']['ratio']:.2f}×"
    return ""


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: of each search the recipe and the pick, and whether it beats the recipe."""
    lines = [
        "| seed | asked for | time | trainings | the recipe: test %, ms | the pick: test %, ms | beats the recipe |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        written = row["written"]
        better = beats(row["pick"], written) if written else ""
        cells = [
            f"{100 * one['test']['top1']:.1f}, {one['latency_ms']:.3g}" if one else "–"
            for one in (written, row["pick"])
        ]
        lines.append(
            f"| {row['seed']} | `{row['asked']}` | {row['time']}, {row['runtime']} | {row['points']} | {cells[0]} | "
            f"{cells[1]} | {better or 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time", default="5m")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--latency", default="recipe")
    parser.add_argument("--max-drop")
    parser.add_argument("--output", default="runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the recipe")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rows = json.loads(arguments.results.read_text()) if arguments.results.is_file() else []
    done = {(row["seed"], row["time"], row["runtime"], row["asked"]) for row in rows}
    for seed in range(arguments.seeds if not arguments.table else 0):
        if (seed, arguments.time, arguments.runtime, asked(arguments)) not in done:
            rows.append(searched(seed, arguments))
            files.publish_json(arguments.results, rows)
    print(table(rows))
    if arguments.results == RESULTS and rows:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(BLOCK.sub(lambda found: f"{found[1]}{table(rows)}{found[3]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
