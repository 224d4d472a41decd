#!/usr/bin/env python3
"""Draws what measure.py --json wrote: plot.py FIGURES.json OUT.svg. Tokens per second by depth and bytes by depth, of one
thread, as an SVG without anything but text and lines."""

import json
import pathlib
import sys

if len(sys.argv) != 3:
    sys.exit(__doc__)
told = json.loads(pathlib.Path(sys.argv[1]).read_text())
rows = [row for row in told["rows"] if row["threads"] == 1]
shown = {"engine fp16, -fa on": ("llama.cpp fp16, flash attention", "#8a8f98", ""), "engine fp16, -fa off": ("llama.cpp fp16", "#5b6068", ""),
         "engine q8_0, -fa on": ("llama.cpp q8_0", "#b08a5a", "5 4"), "f16": ("gearkv f16", "#7fa7d6", "5 4"),
         "gear-4": ("gearkv gear-4", "#1f6fbf", ""), "gear-2": ("gearkv gear-2", "#0b8457", "")}
width, height, left, top, plot_w, plot_h = 960, 348, 44, 44, 240, 236
panel_w = width // 2


def nice(most):
    """The least of 1, 2, 2.5 and 5 times a power of ten that makes at most five steps up to `most`."""
    power = 10 ** (len(str(int(most))) - 2)
    return next(power * step for step in (1, 2, 2.5, 5, 10, 20, 25, 50) if power * step * 5 >= most)


def text(x, y, words, size=12, anchor="start", color="#333", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{more}>{words}</text>'


def panel(x0, title, value, names):
    """One diagram: depth to the right, value of a row upwards; each line is named at its end."""
    points = {name: sorted((row["depth"], value(row)) for row in rows if row["cache"] == name) for name in names}
    deepest = max(depth for line in points.values() for depth, _ in line)
    step = nice(max(y for line in points.values() for _, y in line))
    most = step * 5
    while most - step >= max(y for line in points.values() for _, y in line):
        most -= step
    at_x = lambda depth: x0 + left + plot_w * depth / deepest  # noqa: E731
    at_y = lambda y: top + plot_h * (1 - y / most)  # noqa: E731
    out = [text(x0 + left, top - 20, title, 14, more=' font-weight="bold"')]
    for i in range(round(most / step) + 1):
        y = at_y(i * step)
        out += [f'<line x1="{x0 + left}" y1="{y:.1f}" x2="{x0 + left + plot_w}" y2="{y:.1f}" stroke="#ddd"/>',
                text(x0 + left - 7, y + 4, f"{i * step:g}", anchor="end", color="#666")]
    for depth in sorted({depth for line in points.values() for depth, _ in line}):
        out.append(text(at_x(depth), top + plot_h + 18, f"{depth:,}", anchor="middle", color="#666"))
    out.append(text(x0 + left + plot_w / 2, top + plot_h + 36, "tokens in the cache", anchor="middle", color="#666"))
    ends = []
    for name, line in points.items():
        label, color, dash = shown[name]
        path = " ".join(f"{at_x(depth):.1f},{at_y(y):.1f}" for depth, y in line)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.2"{dashes}/>')
        out += [f'<circle cx="{at_x(depth):.1f}" cy="{at_y(y):.1f}" r="2.6" fill="{color}"/>' for depth, y in line]
        ends.append([at_y(line[-1][1]), f"{label}, {line[-1][1]:.0f}", color])
    ends.sort()
    for before, end in zip(ends, ends[1:]):  # no two names on each other
        end[0] = max(end[0], before[0] + 14)
    over = max(0, ends[-1][0] - (top + plot_h))
    for y, label, color in ends:
        out.append(text(x0 + left + plot_w + 8, y + 4 - over, label, 11, color=color))
    return out


speed = [name for name in shown if any(row["cache"] == name for row in rows)]
held = [name for name in speed if name not in ("engine fp16, -fa off", "f16")]
svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">',
       f'<rect width="{width}" height="{height}" fill="#fff"/>']
svg += panel(0, "tokens per second, one thread", lambda row: row["decode"], speed)
shown["engine fp16, -fa on"] = ("llama.cpp fp16", *shown["engine fp16, -fa off"][1:])
svg += panel(panel_w, "MiB of keys and values", lambda row: 0 if row["depth"] == 0 else row["bytes"] / 1048576, held)
svg += [text(width - 8, height - 6, f"{told['model']}, {told['processor']}, {told['date']}", 10, "end", "#888"), "</svg>"]
pathlib.Path(sys.argv[2]).write_text("\n".join(svg) + "\n")
