#!/usr/bin/env python3
"""The papers of the tool are in step with it: papers_test.py TOOL FOLDER, of the tool's source."""
import os
import shutil
import subprocess
import sys
import unittest

TOOL, FOLDER = sys.argv[1:3]
PAGE = os.path.join(FOLDER, "gearkv.1")


class Papers(unittest.TestCase):
    def complete(self, *words):
        """What bash offers for the last of these words."""
        script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _gearkv; printf "%s\\n" "${COMPREPLY[@]}"'
        result = subprocess.run(["bash", "-c", script, "bash", os.path.join(FOLDER, "gearkv.bash"), TOOL, *words],
                                capture_output=True, text=True, check=True)
        self.assertEqual(result.stderr, "")
        return result.stdout.split()

    def test_the_manual_page_is_what_the_tool_says(self):
        page = subprocess.run([sys.executable, os.path.join(FOLDER, "man.py"), TOOL], capture_output=True, text=True, check=True)
        with open(PAGE, encoding="utf-8") as file:
            self.assertEqual(page.stdout.split("\n"), file.read().split("\n"), "run man.py anew")
        for word in ("gearkv chat", "gearkv state verify", r"\fB\-\-top\-n\-sigma\fR \fIFLOAT\fR", r"Default gear\-4."):
            self.assertIn(word, page.stdout)

    @unittest.skipUnless(shutil.which("groff"), "no groff")
    def test_the_manual_page_is_sound(self):
        result = subprocess.run(["groff", "-man", "-ww", "-Tascii", PAGE], capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("gearkv - models with a compressed KV cache on CPUs", result.stdout)

    def test_words_are_completed(self):
        self.assertEqual(self.complete("pl"), ["plan"])
        self.assertIn("tokenize", self.complete(""))
        self.assertEqual(self.complete("state", "v"), ["verify"])
        self.assertEqual(self.complete("generate", "--top-"), ["--top-k", "--top-p", "--top-n-sigma"])
        self.assertIn("--prompt", self.complete("generate", PAGE, "--p"))
        self.assertNotIn("--prompt", self.complete("inspect", "--p"))
        self.assertIn("scalar", self.complete("generate", "--level", ""))
        self.assertEqual(self.complete("generate", "--kv", "gear-4"), ["gear-4"])
        self.assertEqual(self.complete("inspect", PAGE), [PAGE])
        self.assertEqual(self.complete("nonsense-there-is-not", "")[0:1], ["chat"])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
