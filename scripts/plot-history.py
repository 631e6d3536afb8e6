#!/usr/bin/env python3
"""Draws the history of the bench: scripts/plot-history.py benches/history.jsonl >history.svg

One small chart for each ratio, over all runs with the kernel, architecture and number of CPUs of the
last run. A ratio is red if it is worse than the median of the earlier runs by more than 10 %."""

import html
import json
import statistics
import sys

WIDTH, ROW, TEXT, PLOT = 1000, 34, 640, 240
TOLERANCE = 0.1


def series(runs):
    """The values of each ratio that the last run has, oldest first."""
    last = runs[-1]
    comparable = [run for run in runs if all(run[key] == last[key] for key in ("kernel", "arch", "cpus"))]
    for name, ratio in sorted(last["ratios"].items()):
        values = [run["ratios"][name]["value"] for run in comparable if name in run["ratios"]]
        yield name, values, ratio["at_most"]


def is_worse(values, at_most):
    *before, now = values
    if not before:
        return False
    median = statistics.median(before)
    change = (now - median) / abs(median) if median else 0
    return (change if at_most else -change) > TOLERANCE


def points(values, top):
    low, high = min(values), max(values)
    step = PLOT / max(len(values) - 1, 1)
    for i, value in enumerate(values):
        part = (value - low) / (high - low) if high > low else 0.5
        yield TEXT + i * step, top + ROW - 8 - part * (ROW - 14)


def draw(runs):
    rows = list(series(runs))
    height = ROW * len(rows) + 10
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">'
    yield f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    for i, (name, values, at_most) in enumerate(rows):
        top = ROW * i
        color = "#c33" if is_worse(values, at_most) else "#357"
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points(values, top))
        x, y = list(points(values, top))[-1]
        yield f'<text x="10" y="{top + 22}">{html.escape(name)}</text>'
        yield f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'
        yield f'<text x="{TEXT + PLOT + 20}" y="{top + 22}" fill="{color}">{values[-1]:.3g}</text>'
    yield "</svg>"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        runs = [json.loads(line) for line in file]
    print("\n".join(draw(runs)))


if __name__ == "__main__":
    main()
