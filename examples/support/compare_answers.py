#!/usr/bin/env python3
"""Two answers of `gearkv chat --json`, and what they took, beside one another. Usage: compare_answers.py A B"""
import json
import sys


def read(path):
    with open(path) as file:
        return json.load(file)


def shown(text):
    """Without what could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "".join("\\x%02x" % byte for byte in c.encode("utf-8", "replace")) for c in text)


answers = [read(path) for path in sys.argv[1:3]]
for answer in answers:
    print("\n--kv %s\n%s" % (answer["kv"], shown(answer["text"].strip())))
rows = [("", [answer["kv"] for answer in answers])]
for title, value in (
    ("tokens in the cache", lambda a: "{:,}".format(a["cache"]["tokens"])),
    ("bytes of the cache", lambda a: "{:,}".format(a["cache"]["stored_bytes"])),
    ("of fp16", lambda a: "%.3f" % a["cache"]["ratio"]),
    ("bits per element", lambda a: "%.2f" % a["cache"]["bits_per_element"]),
    ("prefill, tokens/s", lambda a: "%.1f" % a["prefill"]["tokens_per_second"]),
    ("decode, tokens/s", lambda a: "%.1f" % a["decode"]["tokens_per_second"]),
):
    rows.append((title, [value(answer) for answer in answers]))
print()
for title, values in rows:
    print("%-20s" % title + "".join("%16s" % value for value in values))
