"""Jinja itself, set up as the engines that run chat templates do, and the library's renderer beside it.

Importing it ends the program with 77 when jinja2 is missing (Debian: python3-jinja2).
"""
import datetime
import json
import subprocess
import sys

try:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    print("SKIP: python3-jinja2 is not installed, the templates are compared with nothing")
    sys.exit(77)

DATE = (2025, 3, 9)


class Generation(Extension):
    """{% generation %}, which marks answers for training and prints its block."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.If(nodes.Const(True), body, [], [], lineno=line)


def environment():
    def refuse(message):
        raise TemplateError(message)

    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    jinja.globals["raise_exception"] = refuse
    jinja.globals["strftime_now"] = lambda form: datetime.datetime(*DATE).strftime(form)
    jinja.filters["tojson"] = lambda value, ensure_ascii=False, indent=None: json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
    return jinja


def render(compiled, messages, **more):
    variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "tools": None, "documents": None}
    return compiled.render(messages=messages, **{**variables, **more})


class Renderer:
    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def text_of(answer):
    return "".join(text for text, markup in answer["segments"])
