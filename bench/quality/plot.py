"""Draws what quality wrote, bits against attention error, a panel for each data set; and what `gearkv perplexity --table paper
--json` wrote, bits against the divergence of a model, a panel for each file: plot.py FILE.json... OUT.png (or .svg)."""
import json
import math
import os
import sys

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gearkv"})
import matplotlib.pyplot as plt  # noqa: E402


def panels_of(path):
    """(title, name of the error, [(format, bits, error, whether ours)]) for each panel."""
    with open(path) as source:
        told = json.load(source)
    if told.get("command") != "perplexity":
        rows = told["rows"]
        for name in dict.fromkeys(row["data"] for row in rows):
            yield name, "attention output error", [(row["format"], row["bits_per_element"], row["output_error"], row["ours"])
                                                   for row in rows if row["data"] == name and row["bits_per_element"] <= 9]
        return
    ours = ("gear-4", "gear-3", "gear-2", "gear-1")
    yield (os.path.basename(told["model"]).split(".")[0], f"KL from fp16, {told['tokens']:,} tokens",
           [(row["kv"], row["fp16_percent_of_blocks"] * 0.16, row["kl_divergence"], row["kv"] in ours)
            for row in told["results"] if row["kl_divergence"] > 0])


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    panels = [panel for path in sys.argv[1:-1] for panel in panels_of(path)]
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for axis, (title, error_name, points) in zip(axes.flat, panels):
        for name, bits, error, is_ours in points:
            axis.plot(bits, error, "o" if is_ours else ".", color="C3" if is_ours else "0.5")
            axis.annotate(name, (bits, error), fontsize=6 if is_ours else 5, color="C3" if is_ours else "0.4",
                          xytext=(3, 3), textcoords="offset points")
        line = sorted((bits, error) for _, bits, error, is_ours in points if is_ours)
        axis.plot([bits for bits, _ in line], [error for _, error in line], "-", color="C3")
        axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("bits per element", fontsize=7)
        axis.set_ylabel(error_name, fontsize=7)
        axis.tick_params(labelsize=6)
    figure.tight_layout()
    out = sys.argv[-1]
    figure.savefig(out, dpi=110, metadata={"Date": None} if out.endswith(".svg") else None)


main()
