"""Draws what quality wrote: plot.py quality.json OUT.png. One panel per data set, bits against attention error."""
import json
import math
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py quality.json OUT.png")
    with open(sys.argv[1]) as source:
        rows = json.load(source)["rows"]
    names = list(dict.fromkeys(row["data"] for row in rows))
    columns = 4
    figure, panels = plt.subplots(math.ceil(len(names) / columns), columns, figsize=(4.2 * columns, 3.4 * math.ceil(len(names) / columns)),
                                  squeeze=False)
    for panel in panels.flat[len(names):]:
        panel.axis("off")
    for panel, name in zip(panels.flat, names):
        for row in rows:
            if row["data"] != name or row["bits_per_element"] > 9:
                continue
            panel.plot(row["bits_per_element"], row["output_error"], "o" if row["ours"] else ".", color="C3" if row["ours"] else "0.5")
            if not row["ours"]:
                panel.annotate(row["format"], (row["bits_per_element"], row["output_error"]), fontsize=5, color="0.4")
        ours = sorted((r["bits_per_element"], r["output_error"]) for r in rows if r["data"] == name and r["ours"])
        panel.plot([bits for bits, _ in ours], [error for _, error in ours], "-", color="C3")
        panel.set_yscale("log")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("bits per element", fontsize=7)
        panel.set_ylabel("attention output error", fontsize=7)
        panel.tick_params(labelsize=6)
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=110)


main()
