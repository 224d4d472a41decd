#!/usr/bin/env python3
"""Tests of the gearkv tool, run as a user runs it. Usage: tool_test.py TOOL MODEL DATA_DIR [UNITTEST_OPTION...]"""
import array
import csv
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from tool_case import ToolCase  # noqa: E402

TOOL, MODEL, DATA = sys.argv[1:4]
CONFORMANCE = os.path.join(DATA, "conformance")
RECALL = os.path.join(DATA, "recall_sample.jsonl")
COMMANDS = ["generate", "perplexity", "recall", "passkey", "inspect", "codec", "plan", "bench"]
PROMPT = "The old captain looked at the sea and said"
TEXT = (
    "The old captain looked at the sea and said nothing for a long time. Then he turned to the boy, and asked him "
    "what the ship was called, and where she came from, and how many men were on board.\n"
)


def run(*arguments, env=None, stdin=None):
    return subprocess.run([TOOL, *map(str, arguments)], capture_output=True, env=env, stdin=stdin, timeout=600)


def is_sanitized():
    """Whether the tool carries a sanitizer, which takes address space and memory of its own."""
    with open(TOOL, "rb") as file:
        content = file.read()
    return b"__asan_init" in content or b"__tsan_init" in content


def conformance(name):
    return os.path.join(CONFORMANCE, name + ".npy")


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def read_npy(path):
    """Shape and values of a version 1 float32 file."""
    content = read_bytes(path)
    n_header = struct.unpack("<H", content[8:10])[0]
    header = eval(content[10 : 10 + n_header].decode(), {})  # a dictionary this test or the tool wrote
    assert header["descr"] == "<f4", header
    values = array.array("f")
    values.frombytes(content[10 + n_header :])
    return header["shape"], values


def write_npy(path, shape, values, descr="<f4"):
    header = repr({"descr": descr, "fortran_order": False, "shape": tuple(shape)}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    code = {"<f4": "f", "<f2": "e", "<i4": "i"}[descr]
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        file.write(struct.pack("<%d%s" % (len(values), code), *values))


def relative_error(found, expected):
    return math.sqrt(sum((f - e) ** 2 for f, e in zip(found, expected)) / sum(e * e for e in expected))


def attend(queries, keys, values, n_heads, n_kv_heads, dim):
    """Non-causal softmax attention of queries [n, n_heads, dim] over [n_tokens, n_kv_heads, dim]."""
    n_tokens = len(keys) // (n_kv_heads * dim)
    out = []
    for row in range(len(queries) // dim):
        query = queries[row * dim : (row + 1) * dim]
        head = row % n_heads // (n_heads // n_kv_heads)
        starts = [(t * n_kv_heads + head) * dim for t in range(n_tokens)]
        scores = [sum(map(float.__mul__, query, keys[s : s + dim])) / math.sqrt(dim) for s in starts]
        largest = max(scores)
        weights = [math.exp(x - largest) for x in scores]
        total = sum(weights)
        columns = zip(*(values[s : s + dim] for s in starts))
        out += [sum(map(float.__mul__, weights, column)) / total for column in columns]
    return out


class ToolTest(ToolCase):
    def write(self, name, content):
        with open(self.path(name), "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        return self.path(name)

    def ok(self, *arguments, **options):
        """Standard output of a run that must succeed, and must have nothing to say on standard error."""
        result = run(*arguments, **options)
        self.assertEqual((result.returncode, result.stderr.decode()), (0, ""), arguments)
        return result.stdout.decode()

    def json(self, *arguments):
        answer = json.loads(self.ok(*arguments, "--json"))
        command = " ".join(arguments[:2]) if arguments[0] == "state" else arguments[0]
        self.assertEqual((answer["schema_version"], answer["command"]), (1, command))
        return answer

    def fails(self, code, message, *arguments, **options):
        result = run(*arguments, **options)
        self.assertEqual((result.returncode, result.stdout), (code, b""), result.stderr.decode())
        self.assertIn(message, result.stderr.decode())


class CommandLine(ToolTest):
    def test_help_of_every_command_is_a_result(self):
        for command in COMMANDS:
            self.assertIn("--kv", self.ok(command, "--help"))
            self.assertIn(command, self.ok("--help"))

    def test_version_names_levels_and_executors(self):
        text = self.ok("--version")
        self.assertRegex(text, r"^gearkv \d+\.\d+\.\d+\n")
        self.assertRegex(text, r"\nlevels compiled: .*\bscalar\b")
        self.assertRegex(text, r"\nlevels available: scalar")
        self.assertRegex(text, r"\nexecutors: .*\bserial\n$")

    def test_wrong_command_lines_exit_with_2_and_say_what_was_meant(self):
        self.fails(2, "A subcommand is required")
        self.fails(2, "did you mean generate?", "genrate")
        self.fails(2, "did you mean --threads?", "perplexity", MODEL, "--file", RECALL, "--thread", 1)
        self.fails(2, "required", "generate", MODEL)
        self.fails(2, "unknown level 'sse9', expected", "generate", MODEL, "-p", "x", "--level", "sse9")
        self.fails(2, "expected 1 to 4096", "plan", "--layers", 0, "--kv-heads", 1, "--head-dim", 64, "--ctx", 1)
        self.fails(2, "temperature", "generate", MODEL, "-p", "x", "--temperature", "-1")

    def test_a_wrong_spec_is_explained_by_the_library(self):
        message = 'gearkv: "paper:gear-[^]5" at character 12: expected 2, 3, 4 or 8 bits\n'
        for command in (["generate", MODEL, "-p", "x"], ["perplexity", MODEL, "--file", RECALL],
                        ["recall", MODEL, "--file", RECALL], ["codec", "--k", "x", "--v", "x"]):
            self.fails(2, message, *command, "--kv", "paper:gear-5")

    def test_failures_exit_with_1_and_name_their_code(self):
        self.fails(1, "io_error", "inspect", self.path("absent.gguf"))
        self.fails(1, "not_a_model", "inspect", RECALL)
        self.fails(1, "truncated", "inspect", self.write("short.gguf", read_bytes(MODEL)[:5000]))
        self.fails(1, "absent.txt", "perplexity", MODEL, "--file", self.path("absent.txt"))
        other = "neon" if os.uname().machine == "x86_64" else "avx2"
        self.fails(1, "unavailable_level", "generate", MODEL, "-p", "x", "--level", other)

    def test_output_that_cannot_be_written_is_a_failure(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "wb") as full:
            result = subprocess.run([TOOL, "inspect", MODEL], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"cannot be written", result.stderr)
        for arguments in ["--help"], ["--version"], ["plan", "--help"]:
            with open("/dev/full", "wb") as full:
                result = subprocess.run([TOOL, *arguments], stdout=full, stderr=subprocess.PIPE)
            self.assertEqual((result.returncode, result.stderr), (1, b"gearkv: the output cannot be written\n"), arguments)

    def test_numbers_that_cannot_be_are_refused_with_the_range(self):
        plan = {"--layers": 1, "--kv-heads": 1, "--head-dim": 64, "--ctx": 1}
        for option, least, most in (("--layers", 1, 4096), ("--kv-heads", 1, 4096), ("--head-dim", 8, 1024),
                                    ("--ctx", 1, 2**31 - 1), ("--prompt", 0, 2**31 - 1)):
            for wrong in (least - 1, most + 1, -5, 2**64, 2**64 + least, "1.5", "1e3", "0x10", "x", ""):
                arguments = [x for pair in {**plan, option: wrong}.items() for x in pair]
                self.fails(2, f"expected {least} to {most}", "plan", *arguments)
        for option, most in (("--threads", 1024), ("--chunk", 2**20), ("--ctx", 2**31 - 1), ("--seed", 2**64 - 1)):
            for wrong in (-1, most + 1, "many"):
                self.fails(2, f" to {most}", "perplexity", MODEL, "--file", RECALL, option, wrong)
        self.fails(2, "expected 0 to 1024", "state", "verify", MODEL, "--threads", -1)
        self.fails(2, "expected 0 to", "codec", "--k", "x", "--v", "x", "--block", -1)
        self.fails(2, "expected 0 to", "recall", MODEL, "--file", RECALL, "--limit", -1)
        self.fails(2, "64 bits", "plan", "--layers", 4096, "--kv-heads", 4096, "--head-dim", 1024, "--ctx", 2**31 - 1)

    @unittest.skipIf(is_sanitized(), "a sanitizer cannot start in so little address space")
    def test_memory_that_is_not_there_is_named(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))

        arguments = ["perplexity", MODEL, "--file", RECALL, "--ctx", 2000000, "--chunk", 1000000, "--kv", "f32", "--threads", 1]
        result = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, preexec_fn=limit, timeout=600)
        self.assertEqual((result.returncode, result.stdout), (1, b""), result.stderr)
        self.assertIn(b"memory", result.stderr)
        self.assertNotIn(b"bad_alloc", result.stderr)

    @unittest.skipIf(is_sanitized(), "a sanitizer cannot start in so little address space")
    def test_little_address_space_is_enough_or_an_error_and_never_a_wait(self):
        long = self.write("long.txt", TEXT * 4)
        arguments = ["generate", MODEL, "--file", long, "-n", 2, "--threads", 2, "--float-products", "--stats", "none"]
        expected = self.ok(*arguments)
        found = set()
        # Stacks of the threads that OpenBLAS starts before main: without room for these it ends the process itself.
        stacks = 9000 * max(0, os.cpu_count() - 2)
        for n_kib in (70000, 100000, 150000, 250000, 600000):
            n_kib += stacks
            limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (n_kib << 10, n_kib << 10))
            result = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, preexec_fn=limit, timeout=60)
            found.add(result.returncode)
            if result.returncode == 0:
                self.assertEqual(result.stdout.decode(), expected)
            else:
                self.assertEqual((result.returncode, result.stdout), (1, b""), result.stderr)
                self.assertIn(b"memory", result.stderr)
        self.assertIn(0, found)

    def test_progress_is_shown_on_a_pipe_only_when_asked_for(self):
        arguments = ["recall", MODEL, "--file", RECALL, "--limit", 4, "--threads", 1]
        self.ok(*arguments)
        result = run(*arguments, "--progress")
        self.assertEqual(result.returncode, 0)
        self.assertIn(b" of 16\n", result.stderr)


class Generate(ToolTest):
    def test_text_comes_before_the_table_and_equals_that_of_json(self):
        arguments = ["generate", MODEL, "-p", PROMPT, "-n", 40]
        answer = self.json(*arguments)
        text = self.ok(*arguments)
        self.assertTrue(text.startswith(answer["text"] + "\n"), text)
        self.assertIn("stored / fp16", text)
        self.assertEqual(self.ok(*arguments, "--stats", "none"), answer["text"] + "\n")
        result = run(*arguments, "--stats", "stderr")
        self.assertEqual(result.stdout.decode(), answer["text"] + "\n")
        self.assertIn(b"stored / fp16", result.stderr)
        self.assertEqual(answer["text"], self.json("generate", MODEL, "--file", self.write("p.txt", PROMPT), "-n", 40)["text"])

    def test_text_does_not_depend_on_the_thread_count(self):
        for kv in ("f16", "gear-2", "paper:gear-2"):
            arguments = ["generate", MODEL, "-p", TEXT, "-n", 100, "--kv", kv, "--temperature", 0.8, "--seed", 5]
            one = self.json(*arguments, "--threads", 1)
            two = self.json(*arguments, "--threads", 2)
            self.assertEqual((one["threads"], one["text"]), (1, two["text"]))

    def test_drafts_change_the_speed_and_not_the_text(self):
        saved = self.path("drafted.gkvs")
        for sampling in ([], ["--temperature", 0.7, "--seed", 3]):
            arguments = ["generate", MODEL, "-p", TEXT, "-n", 80, "--ignore-eos", *sampling]
            plain = self.json(*arguments)
            self.assertEqual(plain["drafts"], {"drafted": 0, "right": 0, "passes": 79})
            for drafts in (["--draft", 5], ["--draft", 4, "--draft-model", MODEL], ["--draft", 3, "--save", saved]):
                answer = self.json(*arguments, *drafts)
                self.assertEqual(answer["text"], plain["text"])
                if "--draft-model" in drafts:
                    # A greedy draft of the same model is right but for rounding, beside a sampled text now and then.
                    self.assertGreater(answer["drafts"]["right"], 8 if sampling else 50)
                self.assertGreater(answer["drafts"]["drafted"], 0)
                self.assertEqual(answer["decode"]["tokens"], answer["drafts"]["right"] + answer["drafts"]["passes"])
            arguments = ["generate", MODEL, "--load", saved, "-n", 9, "--ignore-eos"]
            self.assertEqual(self.json(*arguments)["text"], self.json(*arguments, "--draft", 3)["text"])
        self.assertIn(b"--draft-model requires", run("generate", MODEL, "-p", TEXT, "--draft-model", MODEL).stderr)

    def test_the_seed_chooses_the_text_when_sampling(self):
        arguments = ["generate", MODEL, "-p", PROMPT, "-n", 40, "--temperature", 1]
        texts = {self.json(*arguments, "--seed", seed)["text"] for seed in (1, 2, 1)}
        self.assertEqual(len(texts), 2)
        greedy = {self.json(*arguments, "--top-k", 1, "--seed", seed)["text"] for seed in (1, 2)}
        self.assertEqual(len(greedy), 1)

    def test_bytes_add_up_and_match_the_plan(self):
        answer = self.json("generate", MODEL, "-p", TEXT * 3, "-n", 150, "--kv", "paper:gear-2", "--ignore-eos")
        cache = answer["cache"]
        self.assertEqual(cache["tokens"], answer["prefill"]["tokens"] + 149)
        self.assertGreater(cache["compressed_tokens"], 128)
        for tensor in ("keys", "values"):
            parts = cache[tensor]
            self.assertEqual(parts["bytes"], sum(n for part, n in parts.items() if part != "bytes"))
            self.assertTrue(all(parts[part] > 0 for part in ("codes", "scales", "low_rank", "outliers")), parts)
        self.assertEqual(cache["stored_bytes"], cache["keys"]["bytes"] + cache["values"]["bytes"] + cache["buffer"])
        self.assertEqual(cache["fp16_bytes"], cache["tokens"] * 4 * 2 * 2 * 64 * 2)
        self.assertAlmostEqual(cache["ratio"], cache["stored_bytes"] / cache["fp16_bytes"])
        # The last append may have filled a block that only the next one would close: the plan has it closed.
        n_tokens, n_prompt = cache["tokens"], answer["prefill"]["tokens"]
        if (n_tokens - n_prompt % 64) % 64 == 0:
            self.skipTest("this prompt ends on a block")
        plan = self.json("plan", "--layers", 4, "--kv-heads", 2, "--head-dim", 64, "--ctx", n_tokens, "--prompt", n_prompt,
                         "--kv", "paper:gear-2")["results"][0]
        for field in ("stored_bytes", "keys", "values", "buffer"):
            self.assertEqual(plan[field], cache[field], field)

    def test_a_saved_session_goes_on_with_the_same_text(self):
        state = self.path("session")
        whole = self.json("generate", MODEL, "-p", PROMPT, "-n", 260)["text"]
        first = self.json("generate", MODEL, "-p", PROMPT, "-n", 150, "--save", state)["text"]
        for options in [], ["--map"], ["--level", "scalar", "--kv", "gear-4"]:
            rest = self.json("generate", MODEL, "--load", state, "-n", 110, *options)["text"]
            self.assertEqual(first + rest, whole, options)
        info = self.json("state", "info", state)
        self.assertEqual((info["kv"], info["version"], info["layers"], info["kv_heads"]), ("gear-4", 1, 4, 2))
        self.assertEqual(info["bytes"], os.path.getsize(state))
        self.assertEqual(self.json("state", "verify", state)["whole"], True)
        self.assertIn("every byte is as it was written", self.ok("state", "verify", state))
        self.fails(1, "other_codec", "generate", MODEL, "--load", state, "--kv", "gear-2")
        content = bytearray(read_bytes(state))
        content[len(content) // 2] ^= 1
        damaged = self.write("damaged", bytes(content))
        self.assertIn("gear-4", self.ok("state", "info", damaged))
        self.fails(1, "damaged", "state", "verify", damaged)
        self.fails(1, "damaged", "generate", MODEL, "--load", damaged)
        self.fails(1, "not_a_state", "state", "info", MODEL)
        self.fails(1, "io_error", "state", "info", self.path("nothing"))
        self.fails(2, "A subcommand is required; state takes info, verify", "state", "inspect")
        self.fails(1, "io_error", "generate", MODEL, "-p", "x", "-n", 0, "--json", "--save", self.path("no/such/folder"))

    def test_where_a_session_cannot_be_saved_is_said_before_the_work(self):
        model = self.write("model.gguf", read_bytes(MODEL))
        os.symlink(model, self.path("link"))
        os.mkfifo(self.path("fifo"))
        cases = [(model, "protected_file"), (self.path("link"), "protected_file"), (self.path("fifo"), "io_error"),
                 (self.folder, "io_error"), (self.path("no/such/folder"), "io_error")]
        for target, code in cases:
            result = run("generate", model, "-p", PROMPT, "-n", 3, "--save", target)
            self.assertEqual((result.returncode, result.stdout), (1, b""), target)
            self.assertIn(code.encode(), result.stderr)
        self.assertEqual(read_bytes(model), read_bytes(MODEL))

    def test_it_stops_at_the_end_of_the_context(self):
        answer = self.json("generate", MODEL, "-p", "Once", "-n", 100, "--ctx", 32, "--ignore-eos")
        self.assertEqual((answer["stop"], answer["cache"]["tokens"]), ("context full", 32))
        self.fails(1, "prompt_too_long", "generate", MODEL, "-p", TEXT, "--ctx", 8)
        self.assertEqual(self.json("generate", MODEL, "-p", "Once", "-n", 0)["text"], "")

    def test_a_stop_text_ends_the_text_before_it_wherever_tokens_end(self):
        arguments = ["generate", MODEL, "-p", PROMPT, "-n", 60]
        whole = self.json(*arguments)["text"]
        for first, last in ((10, 12), (11, 20), (23, 40), (len(whole) - 3, len(whole))):
            stop = whole[first:last]
            for others in [], ["--stop", "never in it", "--stop", stop + "?"]:
                answer = self.json(*arguments, *others, "--stop", stop)
                self.assertEqual((answer["text"], answer["stop"]), (whole[: whole.index(stop)], "stop text"))
        self.assertEqual(self.ok(*arguments, "--stats", "none", "--stop", whole[11:20]), whole[: whole.index(whole[11:20])] + "\n")
        answer = self.json(*arguments, "--stop", whole[-4:] + "#")
        self.assertEqual((answer["text"], answer["stop"]), (whole, "length"))
        self.fails(2, "empty stop string", *arguments, "--stop", "")

    def test_samplers_change_the_text_as_they_say(self):
        arguments = ["generate", MODEL, "-p", PROMPT, "-n", 60, "--seed", 3]
        greedy = self.json(*arguments)["text"]
        warm = self.json(*arguments, "--temp", 1)["text"]
        self.assertNotEqual(greedy, warm)
        for option in ("--top-k=1", "--top-p=1e-6", "--min-p=0.999", "--top-n-sigma=1e-6"):
            self.assertEqual(self.json(*arguments, "--temp", 1, option)["text"], greedy, option)
        for options in (["--typical", 0.3], ["--xtc-probability", 1, "--xtc-threshold", 0.05],
                        ["--repeat-penalty", 1.5], ["--frequency-penalty", 1], ["--presence-penalty", 1],
                        ["--dry-multiplier", 5, "--dry-allowed-length", 1, "--dry-breaker", "#"]):
            text = self.json(*arguments, "--temp", 1, *options)["text"]
            self.assertNotEqual(text, warm, options)
            self.assertEqual(text, self.json(*arguments, "--temp", 1, *options)["text"])
        for bad in ("x=1", "5", "5=", "=1", "-1=2", "5=1x"):
            self.fails(2, "expected TOKEN=BIAS", *arguments, "--logit-bias=" + bad)
        self.fails(2, "the vocabulary has", *arguments, "--logit-bias", "99999999=1")
        self.fails(2, "typical_p is 0, expected above 0 and at most 1", *arguments, "--typical", 0)
        first = ["generate", MODEL, "-p", PROMPT, "-n", 3]
        forced = self.json(*first, "--logit-bias", "7=1000", "--logit-bias=8=-inf")["text"]
        self.assertEqual(forced, self.json(*first, "--logit-bias", "7=2000")["text"])
        self.assertNotEqual(forced, self.json(*first)["text"])

    def test_random_choices_of_a_saved_session_go_on(self):
        state = self.path("session")
        options = ["--temp", 1, "--repeat-penalty", 1.2]
        whole = self.json("generate", MODEL, "-p", PROMPT, "-n", 90, "--seed", 5, *options)["text"]
        first = self.json("generate", MODEL, "-p", PROMPT, "-n", 40, "--seed", 5, "--save", state, *options)["text"]
        self.assertEqual(first + self.json("generate", MODEL, "--load", state, "-n", 50, *options)["text"], whole)
        other = self.json("generate", MODEL, "--load", state, "-n", 50, "--seed", 6, *options)["text"]
        self.assertNotEqual(first + other, whole)

    def test_a_loaded_session_computes_only_what_a_text_has_more(self):
        state = self.path("session")
        self.ok("generate", MODEL, "-p", TEXT, "-n", 0, "--stats", "none", "--save", state, "--kv", "f32")
        plain = self.json("generate", MODEL, "-p", TEXT + "And so", "-n", 20, "--kv", "f32")
        answer = self.json("generate", MODEL, "--load", state, "-p", TEXT + "And so", "-n", 20)
        self.assertEqual(answer["text"], plain["text"])
        self.assertGreater(answer["reused_tokens"], 20)
        self.assertEqual(answer["reused_tokens"] + answer["prefill"]["tokens"], plain["prefill"]["tokens"])
        # Another text has nothing in common but perhaps its first token.
        answer = self.json("generate", MODEL, "--load", state, "-p", "Once", "-n", 20)
        self.assertEqual(answer["text"], self.json("generate", MODEL, "-p", "Once", "-n", 20, "--kv", "f32")["text"])
        self.assertLess(answer["reused_tokens"], 3)

    def test_a_prompt_beyond_the_trained_context_is_run_with_a_warning(self):
        long = self.write("long.txt", TEXT * 120)
        result = run("generate", MODEL, "--file", long, "-n", 1, "--ctx", 8192, "--kv", "gear-2")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr.decode(), r"^gearkv: a prompt of [0-9,]+ tokens, the model was trained on [0-9,]+: ")

    def limited(self, *arguments):
        """The answer of a run with --memory, and what it said about its choice."""
        result = run("generate", MODEL, "--json", "--threads", 1, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout), result.stderr.decode()

    def test_memory_is_kept_below_by_fewer_bits_and_then_by_less_context(self):
        base = run("plan", MODEL, "--memory", "1G", "--threads", 1, "--json")
        plan = json.loads(base.stdout)
        taken = plan["other_bytes"]
        totals = {row["kv"]: row["total"] for row in plan["results"]}
        prompt = self.write("long.txt", TEXT * 50)
        # What the program takes differs from run to run by more than a bit more in each number does.
        for kvs, room in ((["f16"], 1000000), (["gear-4"], 2000000), (["gear-2", "gear-3", "gear-4"], 300000)):
            limit = taken + totals[kvs[0]] + room
            answer, said = self.limited("--file", prompt, "-n", 100, "--ignore-eos", "--memory", limit)
            kv = answer["kv"]
            self.assertIn(kv, kvs, said)
            self.assertEqual((answer["ctx"], answer["fit"]["fits"]), (4096, True))
            self.assertEqual(answer["fit"]["total"], totals[kv])
            self.assertIn("gearkv: %s with 4096 tokens takes" % kv, said)
            # Beside what was counted: code that is paged in later.
            if not is_sanitized():
                self.assertLess(answer["peak_resident_bytes"], limit + (2 << 20))
            self.assertGreater(answer["peak_resident_bytes"], limit * 0.75)
            self.assertEqual(answer["text"], self.json("generate", MODEL, "--file", prompt, "-n", 100, "--ignore-eos",
                                                       "--kv", kv, "--chunk", answer["fit"]["chunk"])["text"])
        answer, said = self.limited("-p", PROMPT, "-n", 5, "--memory", taken + totals["gear-2"] - 1500000)
        self.assertLess(answer["ctx"], 4096)
        self.assertIn("the trained context of 4096 does not fit", said)
        answer, said = self.limited("-p", PROMPT, "-n", 5, "--memory", "50%", "--kv", "q8", "--ctx", 512)
        self.assertEqual((answer["kv"], answer["ctx"]), ("token-8", 512))

    def test_memory_is_kept_below_with_rates_chosen_from_the_prompt(self):
        prompt = self.write("long.txt", TEXT * 30)
        answer, said = self.limited("--file", prompt, "-n", 5, "--memory", "200M", "--kv", "auto:3.5")
        self.assertEqual((answer["kv"], answer["fit"]["kv"], answer["ctx"]), ("auto:3.5", "auto:3.5", 4096))
        self.assertIn("gearkv: auto:3.5 with 4096 tokens takes", said)
        rows = self.json("plan", MODEL, "--kv", "auto:3.5", "f16", "--ctx", 4096)["results"]
        self.assertLess(rows[0]["total"], rows[1]["total"])

    def test_every_command_with_a_session_multiplies_in_floats_when_asked(self):
        # Working memory tells: codes of vectors are not kept.
        integer, floats = (self.json("plan", MODEL, "--kv", "f16", "--ctx", 1024, "--threads", 1, *option)["results"][0]["scratch"]
                           for option in ([], ["--float-products"]))
        self.assertLess(floats, integer)
        for command in (["generate", MODEL, "-p", PROMPT, "-n", 2], ["perplexity", MODEL, "--file", self.write("t.txt", TEXT), "--ctx", 64],
                        ["recall", MODEL, "--file", RECALL, "--limit", 1], ["chat", MODEL, "-p", "Hi", "-n", 2, "--template", "chatml"]):
            self.json(*command, "--float-products")

    def test_what_does_not_fit_is_refused_with_what_would(self):
        arguments = ["generate", MODEL, "-p", PROMPT, "-n", 5, "--threads", 1]
        self.fails(1, "nothing fits 1.0 MiB: the weights take", *arguments, "--memory", "1M")
        self.fails(1, "f16 with 100000 tokens does not fit 100.0 MiB; f16 with ", *arguments, "--memory", "100M", "--ctx", 100000,
                   "--kv", "f16")
        for bad in ("x", "-1G", "0", "101%", "5Q", "1GG", "1e30G", "%", ".5"):
            self.fails(2, "expected a size as in 800M", *arguments, "--memory=" + bad)
        self.fails(2, "expected a size as in 800M", *arguments, "--soft-cache", "1e-10G")

    def test_ctrl_c_ends_the_line_and_exits_with_130(self):
        process = self.start(TOOL, "generate", MODEL, "-p", PROMPT, "-n", "4000", "--ignore-eos", "--stats", "none", "--level", "scalar")
        first = os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
        self.assertEqual((process.returncode, (first + out)[-1:]), (130, b"\n"))
        self.assertEqual(err, b"gearkv: interrupted\n")

    def test_what_is_interrupted_is_saved_and_goes_on_with_the_same_text(self):
        state = self.path("session")
        whole = self.json("generate", MODEL, "-p", PROMPT, "-n", 4000, "--ignore-eos")["text"]
        for number, code, message in ((signal.SIGTERM, 143, b"gearkv: terminated\n"), (signal.SIGPIPE, 141, b"")):
            process = self.start(TOOL, "generate", MODEL, "-p", PROMPT, "-n", 4000, "--ignore-eos", "--stats", "none",
                                 "--save", state)
            first = os.read(process.stdout.fileno(), 1)
            if number == signal.SIGPIPE:
                process.stdout.close()
                err = process.stderr.read()
                process.wait(timeout=600)
                process.stderr.close()
                first = None
            else:
                process.send_signal(number)
                out, err = process.communicate(timeout=600)
                first = (first + out).decode()[:-1]
            self.assertEqual((process.returncode, err), (code, message))
            answer = self.json("generate", MODEL, "--load", state, "-n", 20, "--ignore-eos")["text"]
            if first is not None:
                self.assertTrue(whole.startswith(first + answer))
            self.assertIn(answer, whole)
            os.remove(state)

    def test_a_prompt_is_interrupted_within_a_chunk_and_what_was_fed_is_saved(self):
        state, long = self.path("session"), self.write("long.txt", TEXT * 60)
        arguments = ["--file", long, "-n", 5, "--chunk", 2]
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = self.start(TOOL, "generate", MODEL, *arguments, "--save", state, "--level", "scalar", "--threads", 1)
            time.sleep(0.3)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, out), (code, b""), err)
            n_saved = self.json("state", "info", state)["tokens"]
            answer = self.json("generate", MODEL, "--load", state, *arguments)
            self.assertEqual(answer["reused_tokens"], n_saved)
            self.assertGreater(answer["prefill"]["tokens"], 0)
        self.assertEqual(answer["text"], self.json("generate", MODEL, *arguments)["text"])


class Perplexity(ToolTest):
    def perplexity(self, *arguments, text=TEXT * 4):
        return self.json("perplexity", MODEL, "--file", self.write("text.txt", text), *arguments)

    def test_f16_does_not_diverge_from_itself_and_fewer_bits_diverge_more(self):
        kinds = ["f16", "f32", "q8", "kivi-4", "kivi-2"]
        answer = self.perplexity("--kv", *kinds, "--ctx", 256)
        results = {row["kv"]: row for row in answer["results"]}
        f16 = results["f16"]
        self.assertEqual((f16["kl_divergence"], f16["top1_agreement"]), (0, 1))
        self.assertLess(results["f32"]["kl_divergence"], 1e-5)
        divergences = [row["kl_divergence"] for row in answer["results"]]
        self.assertEqual(divergences, sorted(divergences))
        self.assertGreater(results["kivi-2"]["kl_divergence"], 0.005)
        self.assertGreater(results["kivi-2"]["bits_per_element"], 2.5)
        self.assertLess(results["kivi-2"]["bits_per_element"], f16["bits_per_element"])

    def test_rates_chosen_from_the_prompt_take_no_more_bits_and_diverge_little(self):
        answer = self.perplexity("--kv", "auto:4.5", "k=trellis-4.59375;v=trellis-3.875", "auto:2.5", "--ctx", 1024,
                                 "--chunk", 256, text=TEXT * 20)
        chosen, even, coarse = answer["results"]
        self.assertEqual(chosen["kv"], "auto:4.5")
        self.assertLessEqual(chosen["bits_per_element"], even["bits_per_element"] + 1e-3)
        self.assertLess(chosen["kl_divergence"], 3 * even["kl_divergence"])
        self.assertGreater(coarse["kl_divergence"], chosen["kl_divergence"])

    def test_blocks_of_long_prompts_are_attended_as_well_as_short_ones(self):
        for kv in ("gear-4", "paper:gear-4", "kivi-4"):
            short, long = (self.perplexity("--kv", kv, "--ctx", 2048, "--chunk", chunk, text=TEXT * 20)["results"][0]
                           for chunk in (128, 512))
            # A long chunk sees more of itself uncompressed.
            self.assertLess(long["kl_divergence"], 1.5 * short["kl_divergence"] + 1e-5, kv)

    def test_perplexity_and_bits_per_byte_agree_on_the_whole_text(self):
        answer = self.perplexity("--kv", "f16", "--ctx", 64)
        self.assertEqual(answer["bytes"], len(TEXT * 4))
        row = answer["results"][0]
        loss = answer["tokens"] * math.log(row["perplexity"])
        self.assertAlmostEqual(loss, answer["bytes"] * math.log(2) * row["bits_per_byte"], places=6)
        self.assertLess(row["perplexity"], 100)  # 1024 would be ignorance

    def test_an_uncompressed_cache_does_not_care_about_the_chunk(self):
        found = [self.perplexity("--kv", "f32", "--chunk", chunk)["results"][0]["perplexity"] for chunk in (7, 64, 512)]
        self.assertLess(max(found) / min(found) - 1, 1e-4)

    def test_windows_score_every_token_once_with_half_a_window_before_it(self):
        # The first window of 64 scores 63 tokens, each later one 32: the loss of the first 63 + 32 tokens is that of
        # one window of 64, and that of the tokens 64 to 95 after BOS and the 31 tokens before them.
        def loss(*arguments, text=TEXT):
            answer = self.perplexity("--kv", "f32", *arguments, text=text)
            return answer["tokens"], answer["tokens"] * math.log(answer["results"][0]["perplexity"])

        n_two, two = loss("--ctx", 64, "--max-tokens", 95, text=TEXT * 2)
        n_one, one = loss("--ctx", 64, "--max-tokens", 63, text=TEXT * 2)
        self.assertEqual((n_two, n_one), (95, 63))
        # One window over everything sees more before the later tokens, hence predicts them otherwise.
        _, whole = loss("--ctx", 128, "--max-tokens", 95, text=TEXT * 2)
        _, whole_start = loss("--ctx", 128, "--max-tokens", 63, text=TEXT * 2)
        self.assertAlmostEqual(one, whole_start, delta=1e-3 * one)
        self.assertGreater(two - one, 0)
        self.assertNotAlmostEqual(two - one, whole - whole_start, delta=1e-3)

    def test_second_halves_are_scored_of_windows_side_by_side(self):
        def loss(*arguments):
            answer = self.perplexity("--kv", "f32", "--ctx", 64, *arguments)
            return answer["tokens"], answer["tokens"] * math.log(answer["results"][0]["perplexity"]), answer["bytes"]

        # Of BOS and 63 tokens the last 31; and no window that is not whole.
        n, half, n_bytes = loss("--second-halves", "--max-tokens", 100)
        (_, whole, all_bytes), (_, start, start_bytes) = loss("--max-tokens", 63), loss("--max-tokens", 32)
        self.assertEqual((n, n_bytes), (31, all_bytes - start_bytes))
        self.assertAlmostEqual(half, whole - start, delta=1e-3 * whole)
        self.assertEqual(loss("--second-halves", "--max-tokens", 128)[0], 62)
        self.fails(1, "40 tokens, less than a window of 64", "perplexity", MODEL, "--file", self.write("text.txt", TEXT * 4), "--ctx", 64,
                   "--second-halves", "--max-tokens", 40)

    def test_several_specs_in_one_run_equal_single_runs(self):
        both = self.perplexity("--kv", "paper:gear-2", "k=paper:gear-2:s=0;v=kivi-4", "--ctx", 256)["results"]
        self.assertEqual(both[1]["kv"], "k=gearl-2;v=kivi-4")
        for row, kv in zip(both, ("paper:gear-2", "k=paper:gear-2:s=0;v=kivi-4")):
            self.assertEqual([row], self.perplexity("--kv", kv, "--ctx", 256)["results"])

    def test_several_texts_have_a_line_each_and_their_mean(self):
        one, two = self.write("one.txt", TEXT * 2), self.write("two.txt", PROMPT * 9)
        command = ("perplexity", MODEL, "--kv", "f16", "kivi-2", "--ctx", 128, "--file", one, "--file", two)
        answer = self.json(*command)
        self.assertEqual(answer["files"], [one, two])
        for row in answer["results"]:
            alone = [self.json(*command[:3], row["kv"], *command[5:7], "--file", path)["results"][0] for path in (one, two)]
            self.assertEqual([{"kv": row["kv"], **part} for part in row["files"]],
                             [{"kv": row["kv"], "file": path, **part} for path, part in zip((one, two), alone)])
            for name in ("kl_divergence", "kl_median", "kl_99", "kl_99_9", "top1_agreement", "fp16_percent"):
                self.assertAlmostEqual(row[name], (alone[0][name] + alone[1][name]) / 2, places=12)
            self.assertAlmostEqual(row["perplexity"] ** 2, alone[0]["perplexity"] * alone[1]["perplexity"], places=6)
        lines = list(csv.DictReader(self.ok(*command, "-o", "csv").splitlines()))
        self.assertEqual([(line["kv"], line["file"]) for line in lines],
                         [(kv, file) for kv in ("f16", "kivi-2") for file in (one, two, "mean")])
        self.assertEqual(float(lines[5]["kl_99"]), answer["results"][1]["kl_99"])
        text = self.ok(*command)
        self.assertRegex(text, r"\nkivi-2 +two\.txt .*\nkivi-2 +mean .*\n$")
        self.assertEqual(len(text.splitlines()), 2 + 2 + 7)

    def test_the_table_of_the_paper_tells_shares_of_fp16(self):
        file = self.write("text.txt", TEXT * 10)
        command = ("perplexity", MODEL, "--file", file, "--ctx", 512, "--chunk", 256, "--table", "paper")
        rows = {row["kv"]: row for row in self.json(*command)["results"]}
        self.assertEqual(len(rows), 12)
        self.assertAlmostEqual(rows["f16"]["fp16_percent"], 100, delta=1)
        for name, row in rows.items():
            self.assertAlmostEqual(row["fp16_percent"], row["bits_per_element"] * 6.25, places=9)
            if name != "f16":
                self.assertLess(row["fp16_percent_of_blocks"], row["fp16_percent"], name)
        self.assertAlmostEqual(rows["kivi-2"]["fp16_percent_of_blocks"], 2.5 * 6.25, delta=0.3)
        lines = self.ok(*command, "-o", "md").splitlines()
        self.assertEqual(lines[-14].split("|")[1:4], [" kv ", " of fp16 ", " tail included "])
        self.assertEqual((lines[-13][:5], len(lines[-12:])), ("|---|", 12))
        self.fails(2, "--kv excludes --table", *command, "--kv", "f16")

    def test_drift_compares_predictions_of_what_the_f16_cache_goes_on_with(self):
        command = ("perplexity", MODEL, "--file", self.write("text.txt", TEXT * 4), "--ctx", 200, "--drift", 50, "--kv", "f16", "kivi-2")
        answer = self.json(*command)
        self.assertEqual((answer["prompt_tokens"], answer["drift"]), (150, 50))
        exact, coarse = answer["results"]
        self.assertEqual((exact["kl_divergence"], exact["top1_agreement"]), (0, 1))
        kl = coarse["files"][0]["kl"]
        self.assertEqual(len(kl), 50)
        self.assertAlmostEqual(coarse["kl_divergence"], sum(kl) / 50, places=12)
        self.assertEqual([(b["first"], b["last"]) for b in coarse["buckets"][:2] + coarse["buckets"][-1:]], [(1, 6), (7, 12), (44, 50)])
        for bucket in coarse["buckets"]:
            part = kl[bucket["first"] - 1 : bucket["last"]]
            self.assertAlmostEqual(bucket["kl_divergence"], sum(part) / len(part), places=12)
        # The first prediction is that behind the prompt, whatever is drawn from it.
        self.assertEqual(self.json(*command)["results"], answer["results"])
        other = self.json(*command, "--seed", 1)["results"][1]["files"][0]["kl"]
        self.assertEqual(other[0], kl[0])
        self.assertNotEqual(other[1:], kl[1:])
        self.assertRegex(self.ok(*command), r"\nkv +to 6 +to 12 .* all +median .*\nf16 +0\.00000 ")
        self.fails(2, "--drift 200, expected less than the context of 200", *command[:6], "--drift", 200)
        self.fails(2, "--second-halves", *command, "--second-halves")

    def test_an_empty_text_is_a_failure(self):
        self.fails(1, "no tokens", "perplexity", MODEL, "--file", self.write("empty.txt", ""))


class Recall(ToolTest):
    def cases(self, n=2):
        with open(RECALL) as file:
            return [json.loads(line) for line in file][:n]

    def save(self, cases):
        return self.write("cases.jsonl", "".join(json.dumps(case) + "\n" for case in cases))

    def exact(self, cases, *arguments):
        buckets = self.json("recall", MODEL, "--file", self.save(cases), *arguments)["results"][0]["buckets"]
        return sum(bucket["exact"] for bucket in buckets), sum(bucket["cases"] for bucket in buckets)

    def test_the_answer_is_what_the_prompt_says(self):
        cases = self.cases()
        self.assertEqual(self.exact(cases, "--kv", "f16"), (2, 2))
        said = cases[0]["answer"]
        other = said[::-1] if said != said[::-1] else said[1:] + str((int(said[0]) + 1) % 10)
        self.assertEqual(cases[0]["prompt"].count(said), 1)
        cases[0]["prompt"] = cases[0]["prompt"].replace(said, other)
        self.assertEqual(self.exact(cases, "--kv", "f16"), (1, 2))
        cases[0]["answer"] = other
        self.assertEqual(self.exact(cases, "--kv", "f16"), (2, 2))

    def test_a_wrong_answer_is_not_counted(self):
        cases = self.cases()
        last = cases[0]["answer"][-1]
        cases[0]["answer"] = cases[0]["answer"][:-1] + ("1" if last != "1" else "2")
        self.assertEqual(self.exact(cases, "--kv", "f16"), (1, 2))

    def test_buckets_and_limit_are_as_in_the_file(self):
        answer = self.json("recall", MODEL, "--file", RECALL, "--kv", "paper:gear-4", "--limit", 1)
        buckets = answer["results"][0]["buckets"]
        self.assertEqual([bucket["bucket"] for bucket in buckets], [256, 512, 1024, 2048])
        self.assertEqual([bucket["cases"] for bucket in buckets], [1, 1, 1, 1])

    def test_lines_that_are_not_cases_are_named(self):
        self.fails(1, "cases.jsonl:1: ", "recall", MODEL, "--file", self.write("cases.jsonl", "{"))
        self.fails(1, "cases.jsonl:1: ", "recall", MODEL, "--file", self.write("cases.jsonl", '{"bucket": 1}\n'))
        cases = self.cases()
        cases[1]["tokens"] += 1
        self.fails(1, "cases.jsonl:2: the prompt is", "recall", MODEL, "--file", self.save(cases))
        self.fails(1, "no cases", "recall", MODEL, "--file", self.write("cases.jsonl", ""))


class Passkey(ToolTest):
    def passkey(self, *arguments):
        return ("passkey", MODEL, "--lengths", "128,256", "--depths", "0,1", *arguments)

    def test_numbers_are_hidden_at_all_lengths_and_depths_by_the_seed(self):
        command = self.passkey("--kv", "f16", "gear-2", "--trials", 2)
        answer = self.json(*command)
        places = [(length, depth) for length in (128, 256) for depth in (0, 1)]
        self.assertEqual([(case["length"], case["depth"]) for case in answer["cases"][::2]], places)
        self.assertEqual(len({case["number"] for case in answer["cases"]}), 8)
        for case in answer["cases"]:
            self.assertRegex(case["number"], r"^[1-9][0-9]{4}$")
            self.assertLessEqual(case["tokens"], case["length"] - 6)
            self.assertGreater(case["tokens"], case["length"] - 60)
        self.assertEqual([row["kv"] for row in answer["results"]], ["f16", "gear-2"])
        for row in answer["results"]:
            self.assertEqual([(cell["length"], cell["depth"], cell["texts"]) for cell in row["cells"]], [(*place, 2) for place in places])
        self.assertEqual(self.json(*command), answer)
        other = self.json(*command, "--seed", 1)["cases"]
        self.assertNotEqual([case["number"] for case in other], [case["number"] for case in answer["cases"]])
        found = sum(cell["found"] for cell in answer["results"][1]["cells"])
        self.assertRegex(self.ok(*command), rf"\nkv +128 +256 +all .*\nf16 [^\n]*\ngear-2 [^\n]* {found}/8 ")

    def test_what_a_spec_found_is_told_before_the_next_is_asked(self):
        command = ("passkey", MODEL, "--lengths", 96, "--depths", 1, "--trials", 40, "--digits", 1, "--kv", "f16", "gear-2", "-o", "csv")
        silent, told = run(*command), run(*command, "--progress")
        self.assertEqual((silent.returncode, silent.stderr, told.stdout), (0, b"", silent.stdout))
        rows = [row.split(",") for row in silent.stdout.decode().split("\n")[1:-1]]
        found = [line for line in told.stderr.decode().split("\n") if line.endswith("found")]
        self.assertEqual(found, [f"{row[0].strip(chr(34))}: {row[-1]} of 40 found" for row in rows])

    def test_a_number_counts_where_the_model_says_it(self):
        # Of one digit the model names the right one now and then, which the f16 cache cannot do less often than itself.
        answer = self.json("passkey", MODEL, "--lengths", 96, "--depths", 1, "--trials", 60, "--digits", 1, "--kv", "f16", "f16")
        one, two = (row["cells"][0]["found"] for row in answer["results"])
        self.assertEqual(one, two)
        self.assertGreater(one, 0)
        self.assertLess(one, 60)

    def test_lengths_that_do_not_fit_are_refused(self):
        self.fails(2, "expected at most the context of ", "passkey", MODEL, "--lengths", 1000000)
        self.fails(2, "--lengths 64, expected at least ", "passkey", MODEL, "--lengths", 64)
        self.fails(2, "--depths", "passkey", MODEL, "--lengths", 128, "--depths", "1.5")
        self.fails(2, "at character 6", "passkey", MODEL, "--lengths", 128, "--kv", "gear-9")


class Inspect(ToolTest):
    def test_it_counts_what_the_file_holds(self):
        answer = self.json("inspect", MODEL)
        self.assertEqual(answer["types"]["all"]["parameters"], 3410176)
        self.assertEqual(answer["types"]["all"]["bytes"], sum(tensor["bytes"] for tensor in answer["tensors"]))
        self.assertEqual(answer["metadata"]["general.architecture"], "llama")
        self.assertEqual(len(answer["tensors"]), answer["types"]["all"]["tensors"])
        self.assertLess(os.path.getsize(MODEL) - answer["types"]["all"]["bytes"], 100000)

    def test_what_a_user_asks_first_comes_first(self):
        answer = self.json("inspect", MODEL)
        summary, vocabulary = answer["summary"], answer["summary"]["vocabulary"]
        self.assertEqual((summary["family"], summary["name"], summary["parameters"]), ("llama", "tiny-recall-3m", 3410176))
        self.assertEqual((summary["layers"], summary["heads"], summary["kv_heads"], summary["head_dim"]), (4, 4, 2, 64))
        self.assertEqual((summary["trained_ctx"], summary["windows"], summary["template"]), (4096, [], "none"))
        self.assertEqual(summary["fp16_bytes_per_token"], 4 * 2 * 64 * 2 * 2)
        gear4 = self.json("inspect", MODEL, "--kv", "gear-4")["cache"][0]["bytes_per_token"]
        self.assertEqual(summary["gear4_bytes_per_token"], gear4)
        self.assertEqual((vocabulary["kind"], vocabulary["tokens"], vocabulary["adds_bos"]), ("llama", 1024, True))
        self.assertEqual((vocabulary["bos"], vocabulary["eos"]), ({"id": 1, "text": "<s>"}, {"id": 2, "text": "</s>"}))
        self.assertEqual(vocabulary["ends"], [vocabulary["eos"]])
        lines = self.ok("inspect", MODEL).split("\n")
        self.assertEqual([line.split()[0] for line in lines[:9]],
                         ["family", "parameters", "types", "layers", "context", "cache", "template", "vocabulary", "special"])
        self.assertIn("3,410,176 in 38 tensors", lines[1])
        self.assertIn("2,048 bytes a token in fp16", lines[5])

    def test_cache_sizes_are_those_of_the_plan(self):
        cache = self.json("inspect", MODEL, "--ctx", 1000, "--kv", "paper:gear-4")["cache"][0]
        plan = self.json("plan", "--layers", 4, "--kv-heads", 2, "--head-dim", 64, "--ctx", 1000, "--prompt", 1000,
                         "--kv", "paper:gear-4")["results"][0]
        self.assertEqual(cache["stored_bytes"], plan["stored_bytes"])
        self.assertAlmostEqual(cache["bytes_per_token"], plan["stored_bytes"] / 1000)

    def test_a_file_that_is_not_run_is_shown_all_the_same(self):
        content = read_bytes(MODEL)
        family = struct.pack("<Q", 5) + b"llama"
        other = self.write("other.gguf", content.replace(family, family[:8] + b"mamba", 1))
        lines = self.ok("inspect", other).split("\n")
        self.assertRegex(lines[0], "^not run     unsupported_model: .*mamba")
        self.assertEqual(lines[1], "family      mamba")
        self.assertIn("llama.block_count = 4", lines)
        self.assertTrue(any(line.startswith("output_norm.weight") for line in lines))
        answer = self.json("inspect", other)
        self.assertEqual((answer["runs"], answer["reason"]["code"]), (False, "unsupported_model"))
        self.assertEqual(answer["types"], self.json("inspect", MODEL)["types"])
        self.assertIs(self.json("inspect", MODEL)["runs"], True)
        # Of a type of weights that nobody here knows the sizes of, the metadata.
        name = b"output_norm.weight"
        at = content.index(name) + len(name) + 4 + 8
        self.assertEqual(content[at : at + 4], bytes(4))
        text = self.ok("inspect", self.write("other.gguf", content[:at] + struct.pack("<I", 16) + content[at + 4 :]))
        self.assertRegex(text, "^not run     unsupported_model: .*IQ2_XXS")
        self.assertIn("llama.block_count = 4", text)
        self.assertNotIn("F16", text.split("\n", 1)[1])

    def test_control_characters_of_a_file_never_reach_the_terminal(self):
        content = read_bytes(MODEL)
        self.assertEqual(content.count(b"tiny-recall-3m"), 1)
        for evil in (b"\x1b[31mrecall\r\n\x00", b"[31m\xc2\x9bcall!\xe2\x80\xae"):
            self.assertEqual(len(evil), 14)
            hostile = self.write("hostile.gguf", content.replace(b"tiny-recall-3m", evil))
            text = self.ok("inspect", hostile)
            self.assertIn("[31m", text)
            self.assertFalse(set(text) & {"\x1b", "\r", "\x00", "\x9b", "\u202e"})
        # The same in the name of a tensor, of a key and of a token.
        for name in (b"output_norm.weight", b"general.name", b"<s>"):
            evil = b"\x1b" + name[1:]
            result = run("inspect", self.write("hostile.gguf", content.replace(name, evil)))
            self.assertNotIn(b"\x1b", result.stdout + result.stderr)


class Codec(ToolTest):
    def codec(self, *arguments, data="outch"):
        return self.json("codec", "--k", conformance(data + "_K"), "--v", conformance(data + "_V"), *arguments)

    def recorded(self, method, bits, rank, sparsity):
        with open(os.path.join(CONFORMANCE, "index.json")) as file:
            rows = json.load(file)["rows"]
        wanted = ("outch", 1024, method, bits, rank, sparsity)
        found = [row for row in rows if tuple(row[k] for k in ("data", "n", "method", "bits", "rank", "sparsity")) == wanted]
        self.assertEqual(len(found), 1, wanted)
        return found[0]

    def test_a_spec_that_needs_a_cache_is_refused(self):
        self.fails(2, "auto:3 chooses its rates from the layers of a cache", "codec", "--k", conformance("outch_K"), "--v",
                   conformance("outch_V"), "--kv", "auto:3")
        self.fails(2, "gear-2;layers-1=q8 has rules for layers", "codec", "--k", conformance("outch_K"), "--v",
                   conformance("outch_V"), "--kv", "gear-2;layers-1=q8")

    def test_errors_are_those_on_record_for_plain_backbones(self):
        for name, method in (("kivi", "KIVI"), ("kcvt", "KCVT")):
            for bits in (2, 4):
                recorded = self.recorded(method, bits, 0, 0.0)
                row = self.codec("--kv", "%s-%d" % (name, bits), "--q", conformance("Q"))["results"][0]
                self.assertAlmostEqual(row["key_error"] / recorded["relK"], 1, delta=1e-3)
                self.assertAlmostEqual(row["value_error"] / recorded["relV"], 1, delta=1e-3)

    def test_written_tensors_have_the_error_it_reports(self):
        out = self.path("k.npy"), self.path("v.npy")
        row = self.codec("--kv", "paper:gear-2", "--out-k", out[0], "--out-v", out[1])["results"][0]
        for path, name, field in zip(out, ("outch_K", "outch_V"), ("key_error", "value_error")):
            shape, values = read_npy(path)
            expected_shape, expected = read_npy(conformance(name))
            self.assertEqual(shape, expected_shape)
            self.assertAlmostEqual(relative_error(values, expected), row[field], places=6)

    def test_attention_error_is_that_of_softmax_over_the_written_tensors(self):
        n_tokens, n_heads, n_kv_heads, dim = 96, 8, 4, 64
        tensors = {}
        for name in ("K", "V"):
            shape, values = read_npy(conformance("outch_" + name))
            tensors[name] = list(values[: n_tokens * n_kv_heads * dim])
            write_npy(self.path(name), (n_tokens, n_kv_heads, dim), tensors[name])
        queries = list(read_npy(conformance("Q"))[1][: 2 * n_heads * dim])
        write_npy(self.path("Q"), (2, n_heads, dim), queries)
        out = self.path("k.npy"), self.path("v.npy")
        row = self.json("codec", "--k", self.path("K"), "--v", self.path("V"), "--q", self.path("Q"), "--kv", "kivi-2:g=32",
                        "--out-k", out[0], "--out-v", out[1])["results"][0]
        shape = (n_heads, n_kv_heads, dim)
        expected = attend(queries, tensors["K"], tensors["V"], *shape)
        found = attend(queries, list(read_npy(out[0])[1]), list(read_npy(out[1])[1]), *shape)
        self.assertAlmostEqual(row["output_error"], relative_error(found, expected), places=6)
        self.assertGreater(row["output_error"], 0.01)

    def test_causal_attention_of_the_last_queries_sees_what_came_before(self):
        # With as many queries as tokens the first query sees one token only, whose weight is 1 in any codec.
        n_tokens, n_heads, dim = 64, 4, 64
        for name in ("K", "V"):
            write_npy(self.path(name), (n_tokens, n_heads, dim),
                      read_npy(conformance("outch_" + name))[1][: n_tokens * n_heads * dim])
        write_npy(self.path("Q"), (1, n_heads, dim), read_npy(conformance("Q"))[1][: n_heads * dim])
        arguments = ["codec", "--k", self.path("K"), "--v", self.path("V"), "--q", self.path("Q"), "--kv", "kivi-2"]
        last = self.json(*arguments, "--causal")["results"][0]["output_error"]
        self.assertEqual(last, self.json(*arguments)["results"][0]["output_error"])
        self.assertNotEqual(last, self.json(*arguments, "--scale", 1)["results"][0]["output_error"])

    def test_float16_files_and_layers_are_read(self):
        shape, values = read_npy(conformance("gauss_K"))
        values = values[: 2 * 128 * 4 * 64]
        write_npy(self.path("h"), (2, 128, 4, 64), values, "<f2")
        write_npy(self.path("f"), (128, 4, 64), [struct.unpack("e", struct.pack("e", x))[0] for x in values[128 * 256 :]])
        layered = self.json("codec", "--k", self.path("h"), "--v", self.path("h"), "--layer", 1, "--kv", "paper:gear-2")
        flat = self.json("codec", "--k", self.path("f"), "--v", self.path("f"), "--kv", "paper:gear-2")
        self.assertEqual(layered["results"], flat["results"])

    def test_smaller_units_cost_more_and_bytes_add_up(self):
        whole = self.codec("--kv", "paper:gear-2")["results"][0]
        units = self.codec("--kv", "paper:gear-2", "--block", 100)["results"][0]
        self.assertGreater(units["bits_per_element"], whole["bits_per_element"])
        self.assertEqual(units["keys"]["header"], 11 * whole["keys"]["header"])
        for row in (whole, units):
            n_bytes = row["keys"]["bytes"] + row["values"]["bytes"]
            self.assertAlmostEqual(row["bits_per_element"], n_bytes * 8 / (2 * 1024 * 4 * 64))

    def test_results_do_not_depend_on_level_or_threads_beyond_rounding(self):
        base = self.codec("--kv", "kivi-2", "--level", "scalar", "--threads", 1)["results"]
        self.assertEqual(base, self.codec("--kv", "kivi-2", "--level", "scalar", "--threads", 2)["results"])
        best = self.codec("--kv", "kivi-2")["results"]
        self.assertAlmostEqual(base[0]["key_error"], best[0]["key_error"], places=6)

    def test_files_that_are_not_such_tensors_are_refused(self):
        keys = conformance("gauss_K")
        content = read_bytes(keys)
        refuse = lambda message, path, *more: self.fails(1, message, "codec", "--k", path, "--v", keys, *more)
        refuse("No such file", self.path("absent.npy"))
        refuse("not a regular file", self.folder)
        refuse("not an .npy file", RECALL)
        refuse("bytes of elements, expected", self.write("short.npy", content[:-1]))
        refuse("bytes of elements, expected", self.write("long.npy", content + b"x"))
        refuse("Fortran", self.write("order.npy", content.replace(b"'fortran_order': False", b"'fortran_order': True ")))
        refuse("element type", self.write("type.npy", content.replace(b"<f4", b">f4")))
        refuse("different numbers", conformance("Q"))
        refuse("--layer picks one", self.write4d())
        refuse("expected (layers", keys, "--layer", 0)
        refuse("non_finite", self.write("nan.npy", content[:-4] + struct.pack("f", math.nan)))

    def write4d(self):
        write_npy(self.path("4d.npy"), (1, 2, 1, 8), [0.0] * 16)
        return self.path("4d.npy")

    def test_an_output_file_that_cannot_be_written_whole_is_not_there(self):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        arguments = ["codec", "--k", conformance("outch_K"), "--v", conformance("outch_V"), "--out-k", self.path("k.npy")]
        result = subprocess.run([TOOL, *arguments], capture_output=True, preexec_fn=limit, timeout=600)
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        self.assertIn(b"cannot be written", result.stderr)
        self.assertFalse(os.path.exists(self.path("k.npy")))

    def test_out_files_take_one_spec(self):
        self.fails(2, "one SPEC", "codec", "--k", conformance("gauss_K"), "--v", conformance("gauss_V"), "--kv", "q8", "f16",
                   "--out-k", self.path("k.npy"))


class Plan(ToolTest):
    def plan(self, kv, n_tokens, n_prompt=0):
        return self.json("plan", "--layers", 3, "--kv-heads", 2, "--head-dim", 128, "--ctx", n_tokens, "--prompt", n_prompt,
                         "--kv", kv)["results"][0]

    def test_bytes_of_a_plain_codec_follow_from_its_definition(self):
        row = self.plan("kivi-4", 640)
        n_elements = 640 * 3 * 2 * 128
        for tensor in ("keys", "values"):
            self.assertEqual(row[tensor]["codes"], n_elements * 4 // 8)
            self.assertEqual(row[tensor]["scales"], n_elements // 64 * 2 * 2)
            self.assertEqual((row[tensor]["low_rank"], row[tensor]["outliers"]), (0, 0))
        # 64 tokens, and 16 that come while these are compressed.
        self.assertEqual(row["buffer"], 2 * (64 + 16) * 3 * 2 * 128 * 2)
        self.assertEqual(row["fp16_bytes"], 2 * 2 * n_elements)
        self.assertAlmostEqual(row["bits_per_element"], row["stored_bytes"] * 8 / (2 * n_elements))

    def test_a_long_prompt_shares_its_factors(self):
        self.assertLess(self.plan("paper:gear-2", 4096, 4096)["stored_bytes"], self.plan("paper:gear-2", 4096)["stored_bytes"])

    def test_text_names_every_spec(self):
        text = self.ok("plan", "--layers", 2, "--kv-heads", 2, "--head-dim", 64, "--ctx", 1000, "--kv", "f16", "paper:gear-2:r=8")
        self.assertIn("\nf16 ", text)
        self.assertIn("\npaper:gear-2:r=8 ", text)

    def test_a_model_file_is_planned_with_all_it_takes(self):
        answer = self.json("plan", MODEL, "--threads", 1)
        self.assertEqual((answer["family"], answer["parameters"], answer["trained_ctx"]), ("llama", 3410176, 4096))
        rows = answer["results"]
        self.assertEqual([row["kv"] for row in rows], ["f16", "gear-4", "gear-3", "gear-2", "gear-1"])
        weights = self.json("inspect", MODEL)["types"]["all"]["bytes"]
        for row in rows:
            self.assertEqual((row["ctx"], row["weights"]), (4096, weights))
            self.assertEqual(row["total"], row["weights"] + row["cache"] + row["scratch"])
        totals = [row["total"] for row in rows]
        self.assertEqual(totals, sorted(totals, reverse=True))
        small, = self.json("plan", MODEL, "--threads", 1, "--kv", "f16", "--ctx", 1024, "--chunk", 32)["results"]
        self.assertLess(small["cache"], rows[0]["cache"] / 3)
        self.assertLess(small["scratch"], rows[0]["scratch"] / 3)
        fit = self.json("plan", MODEL, "--threads", 1, "--memory", "1G")
        self.assertEqual((fit["fit"]["fits"], fit["fit"]["kv"], fit["fit"]["ctx"]), (True, "f16", 4096))
        self.assertTrue(all(row["fits"] for row in fit["results"]))
        text = self.ok("plan", MODEL)
        self.assertIn("trained on 4,096 tokens", text)
        result = run("plan", MODEL, "--memory", "1M")
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"gear-1 with 256 tokens needs", result.stderr)

    def test_a_model_and_a_shape_are_not_both_planned(self):
        self.fails(2, "has layers and heads of its own", "plan", MODEL, "--layers", 3)
        self.fails(2, "MODEL is required", "plan", "--layers", 3, "--kv-heads", 1, "--ctx", 5)
        self.fails(2, "--memory needs MODEL", "plan", "--layers", 3, "--kv-heads", 1, "--head-dim", 64, "--ctx", 5, "--memory", "1G")


class Bench(ToolTest):
    def bench(self, *arguments):
        return self.json("bench", MODEL, "-r", 2, *arguments)

    def test_every_test_is_measured_at_every_depth_for_every_spec_and_thread_count(self):
        answer = self.bench("-p", "16,8", "-n", 4, "-d", "64,0", "-t", "1,2", "--kv", "f16", "gear-4:sinks=8")
        rows = answer["results"]
        names = {(row["kv"], row["test"], row["tokens"], row["depth"]) for row in rows}
        self.assertEqual({kv.split(":")[0] for kv, *_ in names}, {"f16", "gear-4"})
        self.assertEqual({name[1:] for name in names},
                         {("pp", 16, 0), ("pp", 8, 0), ("tg", 4, 0), ("pp", 16, 64), ("pp", 8, 64), ("tg", 4, 64)})
        self.assertEqual((len(names), len(rows)), (12, 24))
        for row in rows:
            rate = row["tokens_per_second"]
            self.assertEqual(len(row["samples"]), 2)
            self.assertEqual((rate["min"], rate["max"]), (min(row["samples"]), max(row["samples"])))
            self.assertTrue(0 < rate["min"] <= rate["median"] <= rate["max"], row)
            self.assertEqual("roofline_share" in row, row["test"] == "tg")

    def test_a_token_reads_the_weights_and_what_the_cache_holds(self):
        weights = self.json("inspect", MODEL)["types"]["all"]["bytes"]
        answer = self.bench("-p", 0, "-n", 1, "-d", "0,640", "-t", 1, "--kv", "f16", "gear-2")
        self.assertEqual(answer["weight_bytes_per_token"], weights)  # the embedding is the output, too
        sizes = self.json("inspect", MODEL)["summary"]
        per_token = sizes["layers"] * sizes["kv_heads"] * sizes["head_dim"] * 2 * 2
        read = {(row["kv"], row["depth"]): row["read_bytes"] - weights for row in answer["results"]}
        self.assertEqual(read["f16", 0], 2 * per_token)
        f16, gear = (read[kv, 640] for kv in sorted({kv for kv, _ in read}, key=lambda kv: kv != "f16"))
        self.assertTrue(642 * per_token <= f16 < 645 * per_token, (f16, per_token))
        self.assertLess(gear, f16 / 2)
        for row in answer["roofline"]:
            self.assertGreater(row["bytes_per_second"]["min"], 1e8)
        memory = {(row["kv"], row["depth"]): row for row in answer["memory"]}
        self.assertTrue(all(row["weights"] == weights and row["scratch"] > 0 for row in memory.values()))
        self.assertGreater(memory["f16", 640]["cache"], memory["f16", 0]["cache"])
        self.assertGreater(answer["peak_resident_bytes"], 64 << 20)  # the buffer of the roofline alone

    def test_it_is_printed_as_text_csv_and_markdown(self):
        arguments = ["bench", MODEL, "-p", 8, "-n", 2, "-t", 1, "-r", 1, "--kv", "f16"]
        text = self.ok(*arguments)
        self.assertRegex(text, r"\nroofline, a plain read of memory: [\d.]+ GB/s")
        self.assertRegex(text, r"\nf16 +1 +pp 8 +0 +[\d.]+ +[\d.]+ - [\d.]+\n")
        self.assertRegex(text, r"\nf16 +1 +tg 2 +0 +[\d.]+ +[\d.]+ - [\d.]+ +\d+ %\n")
        self.assertRegex(text, r"most resident .* [\d,]+ bytes\n$")
        lines = list(csv.DictReader(self.ok(*arguments, "-o", "csv").splitlines()))
        self.assertEqual([(line["kv"], line["test"], line["tokens"], line["depth"]) for line in lines],
                         [("f16", "pp", "8", "0"), ("f16", "tg", "2", "0")])
        self.assertTrue(all(float(line["tokens_per_second"]) > 0 for line in lines))
        self.assertEqual((lines[0]["roofline_share"], float(lines[1]["roofline_share"]) > 0), ("", True))
        self.assertIn("\n| f16 | 1 | tg 2 | 0 | ", self.ok(*arguments, "-o", "md"))
        self.assertEqual(json.loads(self.ok(*arguments, "-o", "json"))["command"], "bench")

    def test_what_cannot_be_measured_is_refused(self):
        self.fails(2, "leave nothing to measure", "bench", MODEL, "-p", 0, "-n", 0)
        self.fails(2, "expected 0 to 1024", "bench", MODEL, "-t", "1,2000")
        self.fails(2, "xml", "bench", MODEL, "-o", "xml")
        self.fails(2, "expected at most", "bench", MODEL, "-d", 2147483647)
        self.fails(1, "io_error", "bench", self.path("none.gguf"))


class Tokenize(ToolTest):
    # The characters that byte-level vocabularies write for bytes.
    BYTES = [chr(b) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE else None for b in range(256)]

    def vocabulary(self, pre="gpt-2"):
        """A GGUF file without tensors: 256 bytes, "ab", a control token and a user-defined one."""
        others = iter(chr(c) for c in range(0x100, 0x144))
        texts = [c or next(others) for c in self.BYTES] + ["ab", "<|im_end|>", "[x]"]
        types = [1] * 257 + [3, 4]

        def text(s):
            return struct.pack("<Q", len(s.encode())) + s.encode()

        def array(element, items):
            return struct.pack("<IIQ", 9, element, len(items)) + b"".join(items)

        values = {
            "tokenizer.ggml.model": struct.pack("<I", 8) + text("gpt2"),
            "tokenizer.ggml.tokens": array(8, [text(t) for t in texts]),
            "tokenizer.ggml.token_type": array(5, [struct.pack("<i", t) for t in types]),
            "tokenizer.ggml.merges": array(8, [text("a b")]),
            "tokenizer.ggml.bos_token_id": struct.pack("<II", 4, 257),
            "tokenizer.ggml.add_bos_token": struct.pack("<I?", 7, True),
        }
        if pre:
            values["tokenizer.ggml.pre"] = struct.pack("<I", 8) + text(pre)
        return self.write("vocabulary.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) +
                          b"".join(text(key) + value for key, value in values.items()))

    def test_a_text_becomes_tokens_one_a_line(self):
        file = self.vocabulary()
        self.assertEqual(self.ok("tokenize", file, "ab\n\t[x]\\"), "257\t<|im_end|>\n256\tab\n10\t\\n\n9\t\\t\n258\t[x]\n92\t\\\\\n")
        self.assertEqual(self.ok("tokenize", file, "--no-bos", "--ids", "ab a[x]"), "256 32 97 258\n")
        self.assertEqual(self.ok("tokenize", file, "--no-bos", "--ids", ""), "\n")

    def test_texts_of_control_tokens_become_tokens_only_when_asked(self):
        file = self.vocabulary()
        plain = self.ok("tokenize", file, "--no-bos", "--ids", "<|im_end|>").split()
        self.assertEqual(len(plain), len("<|im_end|>"))
        self.assertEqual(self.ok("tokenize", file, "--no-bos", "--ids", "--special", "<|im_end|>"), "257\n")

    def test_texts_come_from_a_file_or_the_standard_input_too(self):
        file = self.vocabulary()
        content = self.write("text.bin", b"ab\xff\x00\xc3")
        expected = "256 255 0 195\n"
        self.assertEqual(self.ok("tokenize", file, "--no-bos", "--ids", "--file", content), expected)
        with open(content, "rb") as text:
            self.assertEqual(self.ok("tokenize", file, "--no-bos", "--ids", stdin=text), expected)
        self.fails(2, "at most 1", "tokenize", file, "text", "--file", content)
        self.fails(1, "absent", "tokenize", file, "--file", self.path("absent"))

    def test_tokens_become_their_text_to_the_byte(self):
        file = self.vocabulary()
        self.assertEqual(self.ok("tokenize", file, "--decode", 257, 256, 10, 258), "ab\n[x]")
        self.assertEqual(self.ok("tokenize", file, "--special", "--decode", 256, 257), "ab<|im_end|>")
        self.assertEqual(run("tokenize", file, "--decode", 255, 0).stdout, b"\xff\x00")
        self.fails(1, "bad_token: token 259, expected 0 to 258", "tokenize", file, "--decode", 259)
        self.fails(2, "--decode", "tokenize", file, "--decode", "a")
        self.fails(2, "--decode", "tokenize", file, "--decode", "99999999999")

    def test_json_has_numbers_and_texts(self):
        file = self.vocabulary()
        answer = self.json("tokenize", file, "ab\n", "--no-bos")
        self.assertEqual((answer["ids"], answer["texts"], answer["bytes"]), ([256, 10], ["ab", "\n"], 3))
        self.assertEqual((answer["kind"], answer["pre"], answer["vocabulary"]), ("gpt2", "gpt-2", 259))
        self.assertEqual(self.json("tokenize", file, "--decode", 256, 10)["text"], "ab\n")
        answer = self.json("tokenize", MODEL, "the sea")
        self.assertEqual((answer["kind"], answer["pre"], answer["ids"][0]), ("llama", "", 1))
        self.assertEqual("".join(answer["texts"][1:]), "the sea")

    def test_a_split_rule_is_chosen_when_the_file_has_none_that_is_known(self):
        self.fails(1, "known are gpt-2, smollm", "tokenize", self.vocabulary("brand-new"), "12")
        self.assertEqual(self.json("tokenize", self.vocabulary("brand-new"), "12", "--pre", "qwen2")["pre"], "qwen2")
        result = run("tokenize", self.vocabulary(""), "--ids", "--no-bos", "ab")
        self.assertEqual((result.returncode, result.stdout), (0, b"256\n"))
        self.assertIn(b"guess", result.stderr)

    def test_what_a_file_or_text_holds_never_drives_the_terminal(self):
        text = self.ok("tokenize", self.vocabulary(), "\x1b[31m\u202e")
        self.assertFalse(set(text) & {"\x1b", "\u202e"})


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + sys.argv[4:])
