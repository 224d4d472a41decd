#!/usr/bin/env python3
"""Prints llama.cpp beside itself with gearkv: measure.py BIN MODEL TEXT FOLDER. Parts: quality (llama-perplexity), fill
(contexts to the depths that are timed, their states kept in FOLDER: minutes), speed (of filled ones: seconds, for which
the machine should have nothing else to do). Configurations take turns at every depth, so that what else the machine
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
parser.add_argument("bin", help="where llama-perplexity and rates are")
parser.add_argument("model")
parser.add_argument("text")
parser.add_argument("folder", help="for the states of filled contexts")
parser.add_argument("--parts", nargs="+", default=["quality", "fill", "speed"], choices=["quality", "fill", "speed"])
parser.add_argument("--specs", nargs="+", default=["f16", "gear-4", "gear-2"], help="SPECs beside the engine's own caches")
parser.add_argument("--context", type=int, default=4096, help="tokens of a chunk of text")
parser.add_argument("--chunks", type=int, default=2)
parser.add_argument("--decoder", help="the gearkv tool, whose perplexity and KL stand beside the engine's")
parser.add_argument("--depths", type=int, nargs="+", default=[0, 2048, 4096, 7936])
parser.add_argument("--prompt", type=int, default=1024, help="tokens of the prompt that is timed")
parser.add_argument("--generated", type=int, default=32, help="tokens that are timed at every depth")
parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="the first at all depths, others at the last")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--fill-threads", type=int, default=os.cpu_count())
parser.add_argument("--json", help="what speed measured goes to this file")
args = parser.parse_args()

engine = {"engine fp16, -fa on": ("1", "f16"), "engine fp16, -fa off": ("0", "f16"), "engine q8_0, -fa on": ("1", "q8_0")}
base = "engine fp16, -fa on"
names = [*engine, *args.specs]


def run(name, program, *options):
    """Output and errors of a program of the engine, with its own cache or one of gearkv's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GEARKV_SPEC")}
    if name not in engine:
        environment.update(GEARKV_SPEC=name, GEARKV_STATS="1")
    command = [str(pathlib.Path(args.bin) / program), *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: {' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout, done.stderr


def found(pattern, text):
    match = re.search(pattern, text)
    return float(match.group(1)) if match else float("nan")


def held_bytes(errors):
    """Of the largest sequence, its tables too, and of all its caches (one for layers with a window)."""
    line = r"window (\d+): sequence \d+: (\d+) tokens, ([\d.]+) MiB in blocks and buffers \([\d.]+ of fp16\), ([\d.]+) MiB tables"
    lines = [(int(n), window, float(blocks) + float(tables)) for window, n, blocks, tables in re.findall(line, errors)]
    most = max(n for n, _, _ in lines)
    return round(1048576 * sum({window: mib for n, window, mib in lines if n == most}.values()))


def quality():
    print(f"{args.chunks} x {args.context} tokens of {pathlib.Path(args.text).name}, the second half of each; KL from the engine's fp16\n"
          "cache with flash attention, and of gearkv's own decoder from its fp16 cache")
    decoder = own_decoder()
    print(f"{'cache':22}{'perplexity':>12}{'KL mean':>9}{'same top-1':>12}" +
          (f"{'own decoder':>14}{'KL mean':>9}" if decoder else ""), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            flash, kind = engine.get(name, ("1", "f16"))
            options = ["-m", args.model, "-f", args.text, "-c", args.context, "--chunks", args.chunks, "-t", args.fill_threads, "-fa", flash,
                       "-ctk", kind, "-ctv", kind, "--kl-divergence-base", f"{folder}/logits"]
            text = "".join(run(name, "llama-perplexity", *options, *([] if name == base else ["--kl-divergence"])))
            ppl = found(r"Final estimate: PPL = ([\d.]+)", text) if name == base else found(r"Mean PPL\(Q\)\s*:\s*([\d.]+)", text)
            kl = 0.0 if name == base else found(r"Mean\s+KLD:\s*([-\d.]+)", text)
            top = 100.0 if name == base else found(r"Same top p:\s*([\d.]+)", text)
            own = decoder.get(name)
            print(f"{name:22}{ppl:12.3f}{kl:9.4f}{top:11.1f}%" + (f"{own[0]:14.3f}{own[1]:9.4f}" if own else ""), flush=True)


def own_decoder():
    if not args.decoder:
        return {}
    command = [args.decoder, "perplexity", args.model, "--file", args.text, "--second-halves", "--ctx", args.context, "--chunk", 512,
               "--max-tokens", args.context * args.chunks, "--json", "--kv", *args.specs]
    output = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    results = json.loads(output)["results"]
    return {name: (result["perplexity"], result["kl_divergence"]) for name, result in zip(args.specs, results)}


def rates(what, name, depths, *options):
    flash, kind = engine.get(name, ("1", "f16"))
    state = pathlib.Path(args.folder) / f"{pathlib.Path(args.model).stem}-{re.sub('[^a-z0-9]+', '-', name)}"
    return run(name, "rates", what, args.model, state, ",".join(map(str, depths)), f"flash={flash}", f"type={kind}", *options)


def fill():
    pathlib.Path(args.folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        rates("fill", name, [depth for depth in args.depths if depth > 0], f"threads={args.fill_threads}")


def measure_speed():
    """(name, depth, threads) -> what rates told, the fastest of all rounds."""
    best = {}
    tests = [(args.threads[0], depth) for depth in args.depths] + [(n, args.depths[-1]) for n in args.threads[1:]]
    for _ in range(args.rounds):
        for threads, depth in tests:
            for name in names:
                output, errors = rates("time", name, [depth], f"threads={threads}", f"generated={args.generated}", f"prompt={args.prompt}")
                row = json.loads(output)
                row["bytes"] = row.pop("state_bytes") if name in engine else held_bytes(errors)
                row["rounds"] = best.get((name, depth, threads), {"rounds": []})["rounds"] + [row["decode"]]
                before = best.setdefault((name, depth, threads), row)
                for key in ("decode", "prompt"):
                    row[key] = max(row[key], before[key])
                best[name, depth, threads] = row
                print(f"{name}, {depth:,} deep, {threads} thread(s): {row['decode']:.1f}, fastest of {row['rounds']}", file=sys.stderr, flush=True)
        if args.json:
            write_json(best)
    return best


def speed():
    best = measure_speed()
    first, last = args.threads[0], args.depths[-1]
    print(f"\ntokens per second with {first} thread(s), fastest of {args.rounds} rounds; bytes, tail and tables too, and peak memory of the process")
    print(f"{'cache':22}" + "".join(f"{f'{depth:,} deep':>12}" for depth in args.depths) +
          "".join(f"{f'{n} threads':>11}" for n in args.threads[1:]) + f"{f'prompt {args.prompt:,}':>14}{'MiB':>8}{'of fp16':>9}{'peak':>7}")
    for name in names:
        row = best[name, last, first]
        print(f"{name:22}" + "".join(f"{best[name, depth, first]['decode']:12.1f}" for depth in args.depths) +
              "".join(f"{best[name, last, n]['decode']:11.1f}" for n in args.threads[1:]) +
              f"{best[name, 0, first]['prompt'] if 0 in args.depths else float('nan'):14.1f}{row['bytes'] / 1048576:8.1f}"
              f"{row['bytes'] / best[base, last, first]['bytes']:9.3f}{row['peak_mib']:7.0f}", flush=True)


def write_json(best):
    rows = [{"cache": name, "threads": threads, **row} for (name, _, threads), row in best.items()]
    told = {"date": str(datetime.date.today()), "model": pathlib.Path(args.model).name, "processor": processor(),
            "prompt": args.prompt, "generated": args.generated}
    lines = ",\n    ".join(json.dumps(row) for row in rows)
    pathlib.Path(args.json).write_text(json.dumps(told)[:-1] + f',\n  "rows": [\n    {lines}\n  ]}}\n')


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


print(f"{datetime.date.today()}, {pathlib.Path(args.model).name}, {processor()}, {os.cpu_count()} processors\n")
for part, measure in (("quality", quality), ("fill", fill), ("speed", speed)):
    if part in args.parts:
        measure()
