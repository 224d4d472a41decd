#!/usr/bin/env python3
"""What people do with llama.cpp's programs, done with a gear cache: programs.py BIN MODEL TEXT [SPEC]... Several threads, drafts,
a cache of prompts on disk, a server with four slots, and contexts that are full and shift must give the answers they give
without. Needs llama-completion, llama-speculative-simple, llama-server and shift in BIN."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

if len(sys.argv) < 4:
    sys.exit(__doc__)
folder, model, text, specs = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:] or ["gear-4"]
story = ("The harbour lay still under the first light. A woman in a grey coat counted the boats, as she had done every "
         "morning for eleven years, and wrote the number in a small book.\n")
beginning = story + "Once upon a time, the keeper of a lighthouse"
questions = ["What did the woman count?", "What colour was her coat?", "Where did she write?", "What time of day was it?"]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the engine's workers spin, which takes minutes beside other work
failed = []


def told(name, right, more=""):
    print(f"  {'ok    ' if right else 'FAILED'} {name}{more}", flush=True)
    if not right:
        failed.append(name)


def run(program, spec, *options):
    """What a program writes, and its log."""
    command = [str(folder / program), "-m", model, "--temp", 0, "--ignore-eos", "-p", beginning, "-n", 48, *options]
    done = subprocess.run(list(map(str, command)), env={**os.environ, "GEARKV_SPEC": spec}, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, errors="replace")
    if done.returncode != 0:
        sys.exit(f"{command} with GEARKV_SPEC={spec} ended with {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout.strip(), done.stderr


def complete(spec, threads, *options):
    return run("llama-completion", spec, "-no-cnv", "--no-warmup", "--no-display-prompt", "-t", threads, *options)[0]


def one_program(spec):
    one = complete(spec, 1)
    told("two and three threads, and others for the prompt, say what one says",
         len(one) > 100 and complete(spec, 2) == one and complete(spec, 3, "-tb", 2) == one)
    told("-ctk says the same as the variable", complete("", 1, "-ctk", spec) == one)
    output, log = run("llama-speculative-simple", spec, "-md", model, "--spec-type", "draft-simple", "--spec-draft-n-max", 7, "-t", 1, "-td", 1)
    accepted = re.search(r"n_accept\s*=\s*(\d+)", output + log)
    told("drafts leave the text as it is", one in output and accepted is not None and int(accepted.group(1)) > 20,
         f" ({accepted.group(1)} drafted tokens accepted)" if accepted else "")
    with tempfile.TemporaryDirectory() as place:
        first, again = (complete(spec, 1, "--prompt-cache", f"{place}/cache") for _ in range(2))
        told("a prompt from disk goes on as it did", first == again == one, f" ({os.path.getsize(f'{place}/cache') / 1e6:.1f} MB)")


def ask(port, path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


@contextlib.contextmanager
def server(spec, *options):
    """Its port, and a list that gets its exit code and its log when it has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ended = []
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen([str(folder / "llama-server"), "-m", model, "-t", "1", "--port", str(port), "--no-warmup", *options],
                                   env={**os.environ, "GEARKV_SPEC": spec}, stdout=subprocess.DEVNULL, stderr=log)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                except OSError:
                    time.sleep(0.2)
            yield port, ended
        finally:
            process.terminate()
            code = process.wait(timeout=60)
            log.seek(0)
            ended += [code, log.read()]


def slots(spec):
    own, ours = (use_slots(each) for each in ("", spec))
    # Of a model with windows the engine computes some of a prompt again, from a place it has marked.
    told("four slots at once answer as one by one", ours["same"] >= 3, f" ({ours['same']} of 4 word for word)")
    told("a prompt again comes out of the cache, as without", ours["again"] and ours["cached"] >= own["cached"],
         f" ({ours['cached']} of {ours['prompt']} tokens, without {own['cached']})")
    told("a slot is saved and goes on in another, as without", ours["saved"] and ours["later"] and ours["restored"] >= own["restored"],
         f" ({ours['bytes'] / 1e6:.1f} MB, without {own['bytes'] / 1e6:.1f}; {ours['restored']} tokens, without {own['restored']})")
    told("four answers to one prompt", len(ours["texts"]) == 4 and all(ours["texts"]) and len(set(ours["texts"])) > 1)
    told("the server ends without a complaint of gearkv", ours["code"] == 0 and "gearkv: layer" not in ours["log"],
         f" (exit code {ours['code']})")


def use_slots(spec):
    """Does with a server's slots what people do; what came of it, and how many tokens of prompts were not computed again."""
    with tempfile.TemporaryDirectory() as place, server(spec, "-np", "4", "-c", "8192", "--slot-save-path", place) as (port, ended):
        def answer(question, slot, cached=True):
            return ask(port, "/completion", {"prompt": story * 4 + question + "\n", "n_predict": 16, "temperature": 0, "id_slot": slot,
                                             "cache_prompt": cached})

        alone = [answer(question, 0, False)["content"] for question in questions]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = list(pool.map(answer, questions, range(4)))
        again = answer(questions[2], 2)
        saved = ask(port, "/slots/2?action=save", {"filename": "slot.bin"})
        ask(port, "/slots/2?action=erase", {})
        restored = ask(port, "/slots/3?action=restore", {"filename": "slot.bin"})
        later = answer(questions[2], 3)
        several = ask(port, "/v1/completions", {"prompt": story * 4 + questions[0] + "\n", "max_tokens": 16, "temperature": 1, "seed": 1, "n": 4})
    return {"same": sum(a == b["content"] for a, b in zip(alone, together)), "again": again["content"] == together[2]["content"],
            "prompt": again["tokens_evaluated"], "cached": again["timings"]["cache_n"], "bytes": saved["n_written"],
            "saved": saved["n_saved"] == restored["n_restored"] >= again["tokens_evaluated"],
            "later": later["content"] == again["content"], "restored": later["timings"]["cache_n"],
            "texts": [choice["text"] for choice in several["choices"]], "code": ended[0], "log": ended[1]}


def beyond_context(spec):
    """A completion of more tokens than the context has: what the shifts told, and how many tokens came."""
    with server(spec, "-np", "1", "-c", "256", "--context-shift", "--swa-full") as (port, ended):
        answer = ask(port, "/completion", {"prompt": beginning, "n_predict": 400, "n_keep": 24, "temperature": 0, "ignore_eos": True})
    return re.findall(r"context shift, (.*)", ended[1]), answer["tokens_predicted"]


def shifts(spec):
    own, ours = beyond_context(""), beyond_context(spec)
    told("a server's full context drops the tokens it drops without", len(own[0]) > 1 and own == ours,
         f" ({len(own[0])} times {own[0][0] if own[0] else ''})")
    done = subprocess.run([str(folder / "shift"), model, text, spec, "800", "256"], capture_output=True, text=True)
    told("and answers behind shifts are as good as before", done.returncode == 0, f"\n         {(done.stdout + done.stderr).strip()}")


for each in specs:
    print(each, flush=True)
    one_program(each)
    slots(each)
    shifts(each)
print("FAILED: " + ", ".join(failed) if failed else "all as without")
sys.exit(bool(failed))
