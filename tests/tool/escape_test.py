#!/usr/bin/env python3
"""What files, models and command lines hold never drives a terminal. Usage: escape_test.py TOOL MODEL SUPPORT_DIR"""
import json
import os
import pty
import struct
import subprocess
import sys
import unittest

TOOL, MODEL, SUPPORT = sys.argv[1:4]
sys.path.insert(0, SUPPORT)
import markov_model  # noqa: E402
from tool_case import ToolCase  # noqa: E402

# ESC, a C1 control, a right-to-left override, an Arabic letter mark, an isolate, and a byte that continues nothing.
STEERING = ["\x1b[2J", "\x9b", "\u202e", "\u061c", "\u2066", "\udcbf"]
EVIL = "x" + "".join(STEERING) + "y"
SHOWN = "x\\x1b[2J\\xc2\\x9b\\xe2\\x80\\xae\\xd8\\x9c\\xe2\\x81\\xa6\\xbfy"
SAYS = b"x\x1b[2J\xc2\x9b\xe2\x80\xae\xbfy"  # each byte once
SAYS_SHOWN = "x\\x1b[2J\\xc2\\x9b\\xe2\\x80\\xae\\xbfy"


def encoded(text):
    return text.encode("utf-8", "surrogateescape")


class Escaping(ToolCase):
    def write(self, name, content):
        path = os.path.join(encoded(self.folder), encoded(name))
        with open(path, "wb") as file:
            file.write(encoded(content) if isinstance(content, str) else content)
        return path

    def model(self, name="model.gguf", **options):
        path = self.write(name, b"")
        markov_model.write(path, SAYS, **options)
        return path

    def harmless(self, output, arguments):
        text = output.decode("utf-8", "surrogateescape")
        for character in ("\x1b", "\x9b", "\u202e", "\u061c", "\u2066"):
            self.assertNotIn(character, text, arguments)
        self.assertFalse([c for c in text if "\udc80" <= c <= "\udcff"], arguments)
        return text

    def outputs(self, code, *arguments, stdin=b""):
        """Both outputs, none of which steers."""
        arguments = [TOOL, *[a if isinstance(a, bytes) else str(a) for a in arguments]]
        result = subprocess.run(arguments, capture_output=True, input=stdin, timeout=120)
        self.assertEqual(result.returncode, code, result.stderr)
        return self.harmless(result.stdout, arguments), self.harmless(result.stderr, arguments)

    def at_terminal(self, *arguments):
        """What a run prints to a terminal."""
        pid, file = pty.fork()
        if pid == 0:
            os.environ["NO_COLOR"] = "1"
            os.execv(TOOL, [TOOL, *[a if isinstance(a, bytes) else str(a) for a in arguments]])
        seen = b""
        while True:
            try:
                piece = os.read(file, 65536)
            except OSError:
                piece = b""
            if not piece:
                break
            seen += piece
        os.close(file)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, seen)
        return self.harmless(seen, arguments).replace("\r\n", "\n")

    def test_names_and_metadata_are_shown_escaped(self):
        name = lambda key, value: markov_model.entry(key, 8, struct.pack("<Q", len(encoded(value))) + encoded(value))
        marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>" + EVIL.replace("\udcbf", "")]
        model = self.model(EVIL + ".gguf", marks=marks, template=None,
                           more=[name("general.name", EVIL), name("general.note", EVIL + "\nforged = line")])
        text, _ = self.outputs(0, "inspect", model)
        self.assertIn("family      llama, " + SHOWN + "\n", text)
        self.assertIn(SHOWN + "\\nforged = line\n", text)
        self.assertIn("<|im_end|>x\\x1b[2J", text)
        text, _ = self.outputs(0, "plan", model, "--ctx", 512)
        self.assertIn(SHOWN + ".gguf: llama", text)
        for command in (["inspect", model], ["plan", model, "--ctx", 512], ["tokenize", model, "x" + EVIL.replace("\udcbf", "")],
                        ["generate", model, "-p", "\n", "-n", 20, "--kv", "f16"], ["chat", model, "-p", "Hi", "--template", "chatml"]):
            text, _ = self.outputs(0, *command, "--json")
            json.loads(text)
        self.assertEqual(json.loads(self.outputs(0, "tokenize", model, "\x9b\u202e", "--json")[0])["texts"][-5:], ["\ufffd"] * 5)

    def test_json_gives_back_what_it_escapes(self):
        template = "<|im_start|>\x9b\u202e\u2028"
        marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>\x9b\u202e"]
        text, _ = self.outputs(0, "inspect", self.model(marks=marks, template=template), "--json")
        self.assertIn("\\u009b\\u202e", text)
        self.assertEqual(json.loads(text)["summary"]["vocabulary"]["eos"]["text"], marks[2])

    def test_tokens_are_shown_escaped(self):
        text, _ = self.outputs(0, "tokenize", self.model(), encoded(EVIL))
        self.assertIn("\t\\x1b\n", text)
        self.assertIn("\t\\xbf\n", text)
        shown = self.at_terminal("tokenize", self.model(), "--decode", *[3 + byte for byte in SAYS])
        self.assertEqual(shown, SAYS_SHOWN + "\n")

    def test_what_a_model_says_is_shown_escaped_at_a_terminal(self):
        shown = self.at_terminal("generate", self.model(), "-p", "\n", "-n", 30, "--kv", "f16", "--stats", "none")
        self.assertEqual(shown, SAYS_SHOWN + "\n")
        shown = self.at_terminal("chat", self.model(), "-p", "Hi", "--kv", "f16", "--temperature", 0)
        self.assertEqual(shown, SAYS_SHOWN + "\n")

    def test_names_of_texts_and_cases_are_shown_escaped(self):
        file = self.write(EVIL + ".txt", "The sea was calm, and the ship lay still.\n")
        text, _ = self.outputs(0, "perplexity", MODEL, "--file", file, "--kv", "f16", "--ctx", 64)
        self.assertIn(SHOWN + ".txt: ", text)
        for content in ('{"bucket": "' + EVIL, '{"bucket": 1, "%s": 2}\n' % EVIL, EVIL):
            self.outputs(1, "recall", MODEL, "--file", self.write(EVIL + ".jsonl", content))

    def test_errors_are_shown_escaped(self):
        absent = os.path.join(encoded(self.folder), encoded(EVIL))
        for arguments in (["inspect", absent], ["plan", absent], ["generate", absent, "-p", "x"], ["chat", absent, "-p", "x"],
                          ["tokenize", absent, "x"], ["state", "info", absent], ["perplexity", MODEL, "--file", absent],
                          ["recall", MODEL, "--file", absent], ["codec", "--k", absent, "--v", absent],
                          ["generate", MODEL, "-p", "x", "-n", "1", "--load", absent],
                          ["generate", MODEL, "-p", "x", "-n", "1", "--save", absent + b"/x"]):
            self.assertNotEqual(self.outputs(1, *arguments)[1], "", arguments)
        evil = encoded(EVIL)
        for arguments in ([evil], ["inspect", MODEL, b"--" + evil], ["generate", MODEL, "-p", "x", "--kv", evil],
                          ["generate", MODEL, "-p", "x", "--memory", evil], ["generate", MODEL, "-p", "x", "--level", evil],
                          ["generate", MODEL, "-p", "x", "--logit-bias", evil], ["chat", MODEL, "-p", "x", "--template", evil],
                          ["plan", MODEL, "--ctx", evil]):
            self.outputs(2, *arguments)
        # What a file says of itself, in the messages of the library.
        with open(MODEL, "rb") as file:
            content = file.read()
        for name in (b"general.architecture", b"output_norm.weight", b"llama.block_count", b"tokenizer.ggml.model"):
            hostile = evil[: len(name) - 1] + b"z" * max(0, len(name) - 1 - len(evil)) + name[-1:]
            self.outputs(1, "inspect", self.write("hostile.gguf", content.replace(name, hostile)))
        family = struct.pack("<Q", 5) + b"llama"
        self.assertIn(family, content)
        for value in ("\x1b[2Jx", "\x9b\u202e", "\u2066\udcbf."):
            self.assertEqual(len(encoded(value)), 5)
            hostile = self.write("hostile.gguf", content.replace(family, family[:8] + encoded(value), 1))
            _, error = self.outputs(1, "generate", hostile, "-p", "x")
            self.assertIn("unsupported_model", error)
            text, _ = self.outputs(0, "inspect", hostile)
            self.assertIn("unsupported_model", text)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + sys.argv[4:])
