#!/usr/bin/env python3
"""Ctrl-C, SIGTERM and a closed pipe end the commands that measure. Usage: signals_test.py TOOL MODEL DATA_DIR"""
import os
import random
import signal
import struct
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from tool_case import ToolCase  # noqa: E402

TOOL, MODEL, DATA = sys.argv[1:4]
TEXT = "The old captain looked at the sea and said nothing for a long time. Then he turned to the boy, and asked him.\n"
ENDS = [(signal.SIGINT, 130, b"gearkv: interrupted\n"), (signal.SIGTERM, 143, b"gearkv: terminated\n"), (signal.SIGPIPE, 141, b"")]


def write_npy(path, shape):
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    random.seed(1)
    row = struct.pack("<%df" % (shape[1] * shape[2]), *(random.gauss(0, 1) for _ in range(shape[1] * shape[2])))
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + row * shape[0])


class Signals(ToolCase):
    def ends(self, *arguments):
        """Work of minutes ends soon after each of the three, wherever they find it, and has printed nothing."""
        for number, code, message in ENDS:
            for wait in (0.05, 0.5):
                process = self.start(TOOL, *arguments)
                time.sleep(wait)
                self.assertIsNone(process.poll(), "this was to take longer")
                if number == signal.SIGPIPE:
                    process.stdout.close()
                    out = b""
                else:
                    process.send_signal(number)
                process.wait(timeout=30)
                if number != signal.SIGPIPE:
                    out = process.stdout.read()
                    process.stdout.close()
                err = process.stderr.read()
                process.stderr.close()
                self.assertEqual((process.returncode, out, err), (code, b"", message), (arguments, wait))

    def test_perplexity_ends_within_a_chunk(self):
        with open(self.path("text.txt"), "w") as file:
            file.write(TEXT * 2000)
        self.ends("perplexity", MODEL, "--file", self.path("text.txt"), "--chunk", 16, "--threads", 1, "--level", "scalar")

    def test_recall_ends_within_a_chunk(self):
        with open(os.path.join(DATA, "recall_sample.jsonl")) as file:
            cases = file.read()
        with open(self.path("cases.jsonl"), "w") as file:
            file.write(cases * 30)
        self.ends("recall", MODEL, "--file", self.path("cases.jsonl"), "--chunk", 16, "--threads", 1, "--level", "scalar")

    def test_codec_ends_and_leaves_the_files_that_were_there(self):
        for name in ("k.npy", "v.npy", "q.npy"):
            write_npy(self.path(name), (20000, 2, 64))
        keys = ["--k", self.path("k.npy"), "--v", self.path("v.npy"), "--threads", 1, "--level", "scalar"]
        for name in ("out-k", "out-v"):
            with open(self.path(name), "w") as file:
                file.write("as it was")
        # Attention over all tokens takes minutes; then compression does.
        outputs = ["--out-k", self.path("out-k"), "--out-v", self.path("out-v"), "--kv", "paper:gear-4"]
        self.ends("codec", *keys, "--q", self.path("q.npy"), *outputs)
        self.ends("codec", *keys, "--block", 64, "--kv", *["paper:gear-4"] * 200)
        for name in ("out-k", "out-v"):
            with open(self.path(name)) as file:
                self.assertEqual(file.read(), "as it was")
        self.assertEqual(len(os.listdir(self.folder)), 5)

    def test_codec_writes_through_links_and_into_pipes(self):
        for name in ("k.npy", "v.npy"):
            write_npy(self.path(name), (64, 1, 8))
        os.symlink(self.path("far.npy"), self.path("link.npy"))
        with open(self.path("far.npy"), "w"):
            pass
        run = lambda out: subprocess.run([TOOL, "codec", "--k", self.path("k.npy"), "--v", self.path("v.npy"), "--kv", "kivi-4", "--out-k", out],
                                         capture_output=True, timeout=60)
        self.assertEqual(run(self.path("link.npy")).returncode, 0)
        self.assertTrue(os.path.islink(self.path("link.npy")))
        with open(self.path("far.npy"), "rb") as file:
            whole = file.read()
        self.assertEqual(len(whole), os.path.getsize(self.path("k.npy")))
        self.assertTrue(run("/dev/stdout").stdout.startswith(whole))
        self.assertEqual(run("/dev/full").returncode, 1)
        self.assertEqual(run(self.path("no/such")).returncode, 1)
        self.assertFalse([name for name in os.listdir(self.folder) if name.endswith(".part")])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + sys.argv[4:])
