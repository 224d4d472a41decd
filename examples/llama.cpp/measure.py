#!/usr/bin/env python3
"""Prints llama.cpp beside itself with gearkv: measure.py BIN MODEL TEXT. Runs take turns, so that what else the machine
does meets all of them; of several rounds the fastest counts."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("bin", help="where llama-bench and llama-perplexity are")
parser.add_argument("model")
parser.add_argument("text")
parser.add_argument("--specs", nargs="+", default=["f16", "gear-4", "gear-2"], help="SPECs beside the engine's own cache")
parser.add_argument("--context", type=int, default=4096, help="tokens of a chunk of text")
parser.add_argument("--chunks", type=int, default=1)
parser.add_argument("--depths", type=int, nargs="+", default=[0, 4096, 7936])
parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt that is timed")
parser.add_argument("--generated", type=int, default=32, help="tokens that are timed at every depth")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--no-speed", action="store_true")
parser.add_argument("--no-quality", action="store_true")
args = parser.parse_args()


def run(program, spec, *options):
    """Output, errors and peak memory in MiB of a program of the engine."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GEARKV_SPEC")}
    if spec:
        environment.update(GEARKV_SPEC=spec, GEARKV_STATS="1")
    command = [str(pathlib.Path(args.bin) / program), "-m", args.model, *map(str, options)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        out.seek(0), err.seek(0)
        output, errors = out.read(), err.read()
    if status != 0:
        sys.exit(f"{' '.join(command)} with GEARKV_SPEC={spec} ended with {os.waitstatus_to_exitcode(status)}\n{errors[-2000:]}")
    return output, errors, usage.ru_maxrss / 1024


def found(pattern, text):
    match = re.search(pattern, text)
    return float(match.group(1)) if match else float("nan")


def quality():
    print(f"{args.chunks} x {args.context} tokens of {pathlib.Path(args.text).name}; KL from the engine's fp16 cache with flash attention")
    print(f"{'cache':24}{'perplexity':>12}{'KL mean':>10}{'same top-1':>12}{'of fp16':>9}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        base = ["-f", args.text, "-c", args.context, "--chunks", args.chunks, "-t", args.threads, "--kl-divergence-base", f"{folder}/logits"]
        for name, spec, flash in [("engine, -fa on", None, "on"), ("engine, -fa off", None, "off")] + [(s, s, "on") for s in args.specs]:
            first = name == "engine, -fa on"
            output, errors, _ = run("llama-perplexity", spec, *base, "-fa", flash, *([] if first else ["--kl-divergence"]))
            text = output + errors
            ppl = found(r"Final estimate: PPL = ([\d.]+)", text) if first else found(r"Mean PPL\(Q\)\s*:\s*([\d.]+)", text)
            kl = 0.0 if first else found(r"Mean\s+KLD:\s*([-\d.]+)", text)
            top = 100.0 if first else found(r"Same top p:\s*([\d.]+)", text)
            print(f"{name:24}{ppl:12.3f}{kl:10.4f}{top:11.1f}%{share(errors) if spec else '':>9}", flush=True)


def share(errors):
    """Bytes of the largest sequence, all its caches together, beside fp16's."""
    lines = re.findall(r"sequence \d+: (\d+) tokens, ([\d.]+) MiB in blocks and buffers \(([\d.]+) of fp16\)", errors)
    most = max((int(n) for n, _, _ in lines), default=0)
    last = {}
    for n, mib, part in lines:
        if int(n) == most and float(part) > 0:
            last[mib] = float(mib) / float(part)
    return f"{sum(map(float, last)) / sum(last.values()):.3f}" if last else ""


def speed():
    print(f"\ntokens per second of llama-bench, {args.threads} thread(s), best of {args.rounds} rounds; peak memory of the process")
    print(f"{'cache':24}" + "".join(f"{'d ' + str(d):>9}" for d in args.depths) +
          f"{'prompt ' + str(args.prompt):>13}{'peak MiB':>10}{'of fp16':>9}", flush=True)
    configurations = [("engine f16, -fa on", None, 1), ("engine f16, -fa off", None, 0)] + [(s, s, 1) for s in args.specs]
    best = {}
    for _ in range(args.rounds):
        for name, spec, flash in configurations:
            depths = ",".join(map(str, args.depths))
            output, errors, peak = run("llama-bench", spec, "-p", 0, "-n", args.generated, "-d", depths, "-r", 1, "-t", args.threads, "-fa", flash, "-o", "json")
            prompt, _, _ = run("llama-bench", spec, "-p", args.prompt, "-n", 0, "-r", 1, "-t", args.threads, "-fa", flash, "-o", "json")
            row = best.setdefault(name, {"peak": peak, "share": share(errors) if spec else ""})
            for test in json.loads(output) + json.loads(prompt):
                key = ("depth", test["n_depth"]) if test["n_gen"] else "prompt"
                row[key] = max(row.get(key, 0.0), test["avg_ts"])
    for name, row in best.items():
        print(f"{name:24}" + "".join(f"{row['depth', d]:9.1f}" for d in args.depths) +
              f"{row['prompt']:13.1f}{row['peak']:10.0f}{row['share']:>9}", flush=True)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


print(f"{datetime.date.today()}, {pathlib.Path(args.model).name}, {processor()}, {os.cpu_count()} processors\n")
if not args.no_quality:
    quality()
if not args.no_speed:
    speed()
