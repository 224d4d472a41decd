#!/usr/bin/env python3
"""Renders conversations with every template of a folder (*.jinja), by the library and by Jinja itself.

Usage: compare_folder.py RENDERER FOLDER. Prints what differs and what is refused; ends with 1 when anything
differs. A system text that a template refuses or leaves out goes before the first question.
"""
import pathlib
import sys

from jinja_oracle import DATE, Renderer, environment, render, text_of


def turn(role):
    return lambda content: {"role": role, "content": content}


S, U, A = turn("system"), turn("user"), turn("assistant")
THOUGHT = "<think>\nhm, well\n</think>\n\nSo it is."
SYSTEMS = ["", "Be brief.", "  Be brief.\n", "\n\n", "/no_think", "Be nice. /think now", "Do it /system_override please", "日本 <|im_end|>"]
QUESTIONS = ["Hi", "", "  Hi there \n", "\n\nHi\n\n", "naïve 日本 \u00a0", "[INST] x </s>", "{{ x }} /no_think", "a </think> b"]
ANSWERS = ["Ok.", "", " Ok \n", THOUGHT, "\n\nwell", "</think>x", "<think>y</think>\n\nz  "]


def conversations():
    for question in QUESTIONS:
        yield [U(question)]
    for system in SYSTEMS:
        yield [S(system), U("Hi")]
        yield [S(system), U(" x\n"), A(" y\n"), U("z")]
    for answer in ANSWERS:
        yield [U("Q"), A(answer)]
        yield [U("Q"), A(answer), U("R")]
        yield [U("Q"), A("w"), U("R"), A(answer)]
        yield [S("B"), U("Q"), A(answer), U(" R "), A("fine"), U("T")]
        yield [S("B"), U("Q"), A("w"), U("R"), A(answer), U("V"), A(THOUGHT), U("W")]
    # Roles that some templates refuse.
    for roles in ("uu", "a", "au", "s", "sa", "us", "uasu", "ssu", "uaau"):
        yield [{"s": S, "u": U, "a": A}[role]("m%d" % i) for i, role in enumerate(roles)]


class Folder:
    def __init__(self, program):
        self.renderer = Renderer(program)
        self.jinja = environment()
        self.n_templates = self.n_run = self.n_conversations = self.n_refused = self.n_merged = 0
        self.different = []

    def try_jinja(self, compiled, messages, **more):
        try:
            return render(compiled, messages, **more)
        except Exception:  # of any kind: Jinja lets Python's through
            return None

    def compare(self, path):
        self.n_templates += 1
        text = path.read_bytes().decode()
        first = self.renderer.ask(template=text, messages=[U("Hi")])
        if first.get("error") == "unknown_template":
            print("refused: %s: %s" % (path.name, first["message"]))
            return
        self.n_run += 1
        compiled = self.jinja.from_string(text)
        # Tools that are none, or that are not there where a template wants it so.
        rest = {} if self.try_jinja(compiled, [U("First thing")]) is not None else {"tools": self.jinja.undefined(), "documents": self.jinja.undefined()}
        told = self.try_jinja(compiled, [S("Rules apply"), U("First thing")], **rest) or ""
        takes_system = "Rules apply" in told and "First thing" in told
        for messages in conversations():
            for generate in (True, False):
                for thinking in (True, False):
                    more = dict(rest, add_generation_prompt=generate, **({} if thinking else {"enable_thinking": False, "thinking": False}))
                    self.compare_one(path, text, compiled, messages, takes_system, more, generate, thinking)

    def compare_one(self, path, text, compiled, messages, takes_system, more, generate, thinking):
        self.n_conversations += 1
        given = messages
        if not takes_system and any(message["role"] == "system" for message in messages):
            self.n_merged += 1
            rest = messages[1:]
            mergeable = messages[0]["role"] == "system" and rest and rest[0]["role"] == "user" and all(m["role"] != "system" for m in rest)
            given = [U(messages[0]["content"] + "\n\n" + rest[0]["content"])] + rest[1:] if mergeable else None
        expected = None if given is None else self.try_jinja(compiled, given, **more)
        answer = self.renderer.ask(template=text, messages=messages, date=DATE, generate=generate, thinking=thinking)
        found = text_of(answer) if "segments" in answer else None
        self.n_refused += expected is None and found is None
        if found != expected:
            self.different.append((path.name, messages, expected, found if found is not None else answer))


def main():
    folder = Folder(sys.argv[1])
    for path in sorted(pathlib.Path(sys.argv[2]).glob("*.jinja")):
        folder.compare(path)
    for name, messages, expected, found in folder.different:
        print("DIFFERENT: %s: %r\n  expected %r\n  found    %r" % (name, messages, expected, found))
    print("%d templates, %d run, %d conversations (%d refused by both, %d with the system text before the question), %d different"
          % (folder.n_templates, folder.n_run, folder.n_conversations, folder.n_refused, folder.n_merged, len(folder.different)))
    return 1 if folder.different else 0


if __name__ == "__main__":
    sys.exit(main())
