#!/usr/bin/env python3
"""The language of templates, piece by piece, beside Jinja itself. Usage: language_test.py RENDERER

Each piece stands before a conversation in a template of its own; random ones are built from blocks that treat
white space in every way there is.
"""
import random
import sys
import unittest

from jinja_oracle import DATE, Renderer, TemplateError, environment, render, text_of

RENDERER = sys.argv[1]
TURNS = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": " Héllo, 日本 World\n"}, {"role": "assistant", "content": "a,b,,c"}, {"role": "user", "content": ""}]

EXPRESSIONS = """1 + 2 * 3 - 4 | 7 // 2 | -7 // 2 | -7 % 3 | 7 % -3 | 2 - -3 | 1 ~ 2 ~ 'x' | 'a' 'b' "c" | 'a' * 0 if false
'a\\nb' | "a\\tb\\\\" | 'it\\'s' | "\\u00e9\\x41" | none | true | false | True and None | 0 or 'x' | '' and 1
not 1 == 2 | not not 'a' | 1 < 2 < 3 | 1 < 2 > 5 | 'a' in 'cat' | 'a' not in ['b'] | 'role' in messages[0] | 3 in (1, 2, 3)
1 if 2 > 1 else 0 | 1 if false | (1 if false) is defined | 'a' if 0 else 'b' if 0 else 'c' | x is defined and x.y
x is defined | x is undefined | none is none | messages is iterable | messages[0] is mapping | 'a' is string | 1 is number
messages is sequence | true is boolean | false is false | 1 is true | 3 is odd | 3 is not even | 'a' is eq 'a' | 1 is in [1]
messages|length | messages[0].content|length | 'abc'[1] | 'abc'[-1] | 'abc'[9] is defined | messages[-1]['role'] | [1, 2][0]
'日本語'[1:] | '日本語'[::-1] | 'abcdef'[1:5:2] | 'abcdef'[-3:] | 'abcdef'[:-9] | 'abcdef'[4:1:-1] | 'abcdef'[9:] | messages[0:][0].role
{'a': 1}.a | {'a': 1}['b'] is defined | {'a': 1}.get('b') | {'a': 1}.get('b', 2) | {'a': 1} == {'a': 1} | [1, [2]] == [1, [2]]
{'a': 1, 'b': 2}|length | 'a' in {'a': 1} | {'a': 1}.keys()|join | {'a': 'x'}.values()|join | {'a': 1}.items()|length | {}|length
messages[0].content.strip() | messages[0].content.lstrip() | messages[0].content.rstrip() | messages[0].content|trim | 'xxaxx'.strip('x')
'日a日'.strip('日') | 'abc'.rstrip('cb') | ' \\u00a0\\u3000x '|trim | 'a,b,,c'.split(',')|join('|') | ' a  b '.split()|join('|')
'a,b,,c'.split(',', 1)|join('|') | 'a'.split('b')|length | 'abc'.startswith('ab') | 'abc'.endswith(('x', 'c')) | 'abc'.find('c')
'日本'.find('本') | 'aXbX'.replace('X', '') | 'aXbX'|replace('X', 'yy') | 'aBc'|upper | 'aBc'.lower() | 'a bc-de'.title() | 'aB cD'|capitalize
'ÀÉ Дя日'|lower | 'ÿþ×÷'|lower | x|default('y') | ''|default('y') | ''|default('y', true) | none|default('y') | 'x'|d('y')
messages|map(attribute='role')|join(', ') | messages|selectattr('role', 'equalto', 'user')|list|length | messages|first is mapping
messages|rejectattr('role', 'eq', 'user')|map(attribute='content')|list|join | (messages|last).role | [1, 2, 3]|reverse|join
[0, 1, 2]|select|list|length | [0, 1]|reject|join | messages|selectattr('content')|list|length | x|length | x|list|length | x|trim
[1, 'a', none, true]|join('-') | '{}-{}'.format(1, 'x') | range(3)|join | range(1, 9, 3)|join | range(3, 0, -1)|join | 5|string|length
'a'|safe | 1|tojson | none|tojson | true|tojson | (1, 2)|length | ('a',)|first | ()|length | []|first is defined | 'abc'|first | 'abc'|last
strftime_now('%d %b %Y, %A %B %m') | namespace(a=1).a | dict(a=2).a | messages[0].tool_calls is defined | none is not none | 1 == '1'|length
1 == true | 'a' == 1 | none == false | x == y | '%d' is string | messages.0.role | 'b' > 'a' | [1] + [2] == [1, 2] | 2 >= 2 | 1 != 2 | +3"""

STATEMENTS = [
    "{% set x = 1 %}{% for i in range(3) %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1) %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{{ ns.x }}{% endfor %}{{ ns.x }}",
    "{% if messages %}{% set x = 1 %}{% endif %}{{ x }}",
    "{% set a, b = 1, 'z' %}{{ a }}{{ b }}{% for k, v in {'p': 1, 'q': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
    "{% for k in {'p': 1} %}{{ k }}{% endfor %}{% for c in 'añb' %}{{ c }}.{% endfor %}{% for i in x %}{{ i }}{% else %}none{% endfor %}",
    "{% for i in range(9) if i is odd %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex0 }}{{ i }} {% endfor %}",
    "{% for i in [1, 2, 3] %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }}{{ loop.previtem is defined }} {% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in [1, 2] %}{% for j in [3, 4] %}{{ loop.index0 }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% macro f(a, b='d', c=none) %}[{{ a }}{{ b }}{{ c }}{{ later }}]{% endmacro %}{% set later = 1 %}{{ f(1) }}{{ f(1, c=2) }}{{ f('x', 'y') }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(4)|trim|length }}",
    "{% set x %}a{{ 1 + 1 }}b{% endset %}{{ x|upper }}{% set x = x ~ x %}{{ x }}",
    "{% if x %}1{% elif messages|length == 3 %}2{% elif true %}3{% else %}4{% endif %}{% if none %}{% else %}5{% endif %}",
    "{% generation %}{{ 'g' }}{% endgeneration %}\n{# a {% comment %} #}\nz",
    "{% raw %}{{ not this }}{% if %}{% endraw %}\n{%- raw -%}  a  {%- endraw -%}  b",
    "{{ '%}' }}{{ '}}' }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': {'b': 1}}.a.b }}",
    "{%- set messages = messages[0:] -%}{{ messages|length }}",
    "{% for message in messages %}{% set content = message.content %}{{ content|length }}{% endfor %}{{ content }}",
    "{% set loop_messages = messages %}{% for m in loop_messages[:-1] %}{{ loop.index }}{{ m.role }}{% endfor %}",
]
FAILURES = [
    "{{ x.y }}", "{{ x['y'] }}", "{{ 'a' + 1 }}", "{{ none + 'a' }}", "{{ x + 'a' }}", "{{ x() }}", "{{ 1 // 0 }}", "{{ none|length }}", "{{ 1 < 'a' }}",
    "{% for i in none %}{% endfor %}", "{% for i in 5 %}{% endfor %}", "{{ 'a' in none }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}",
    "{% set x = 1 %}{% set x.y = 2 %}", "{% set a, b = [1] %}", "{{ [1][1:2:0] }}", "{{ 'a'.split('') }}", "{{ -'a' }}", "{{ none() }}", "{{ 'a' 1 }}",
    "{% if %}{% endif %}", "{% for %}", "{{ (1 }}", "{{ 1) }}", "{% endif %}", "{{ 'a }}", "{% if 1 %}", "{{ a b }}", "{{ | trim }}", "{{ 1 | nothing }}",
    "{{ 1 is nothing }}", "{% nothing %}", "{{ [1, 2 }}", "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(b=2) }}",
]


class Language(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.renderer = Renderer(RENDERER)
        cls.jinja = environment()

    @classmethod
    def tearDownClass(cls):
        cls.renderer.close()

    def compare(self, template):
        answer = self.renderer.ask(template=template, messages=MESSAGES, date=DATE)
        with self.subTest(template=template):
            try:
                compiled = self.jinja.from_string(template)
            except TemplateError:  # such as {{% that begins an output
                self.assertEqual(answer.get("error"), "unknown_template", answer)
                return 0
            self.assertIn("segments", answer, answer.get("message"))
            self.assertEqual(text_of(answer), render(compiled, MESSAGES))
        return 1

    def test_expressions(self):
        expressions = [part.strip() for line in EXPRESSIONS.split("\n") for part in line.split(" | ")]
        self.assertGreater(len(expressions), 140)
        for expression in expressions:
            self.assertEqual(self.compare("<{{ " + expression + " }}>" + TURNS), 1, expression)

    def test_statements(self):
        for statement in STATEMENTS:
            self.assertEqual(self.compare(statement + TURNS), 1, statement)

    def test_white_space_around_blocks(self):
        random_ = random.Random(1)
        texts = ["", " ", "\n", "\n  ", "  \n", " a", "b ", "c\n", "\n\n", "\t", "\r\n", "{", "}", "d\n  \n"]
        n_valid = 0
        for round_ in range(400):
            def block(code):
                begin, end = random_.choice(["{%", "{%-", "{%+"]), random_.choice(["%}", "-%}", "+%}"])
                return begin + random_.choice([" ", "\n", ""]) + code + random_.choice([" ", "\n "]) + end

            def piece():
                kind = random_.randrange(6)
                if kind == 0:
                    return block("if true") + body() + block("endif")
                if kind == 1:
                    return block("for i in [1, 2]") + body() + block("endfor")
                if kind == 2:
                    return random_.choice(["{{", "{{-"]) + " 'x' " + random_.choice(["}}", "-}}"])
                if kind == 3:
                    return random_.choice(["{#", "{#-", "{#+"]) + " c " + random_.choice(["#}", "-#}", "+#}"])
                if kind == 4:
                    return block("set v = 1")
                return block("raw").replace("+%}", "%}") + random_.choice(texts) + block("endraw")

            def body():
                return "".join(random_.choice(texts) + (piece() if random_.random() < 0.5 else "") for _ in range(random_.randint(1, 3)))

            n_valid += self.compare(body() + body() + TURNS + body())
        self.assertGreater(n_valid, 200)

    def test_what_jinja_refuses_is_refused(self):
        for piece in FAILURES:
            template = piece + TURNS
            with self.subTest(template=template):
                answer = self.renderer.ask(template=template, messages=MESSAGES)
                self.assertEqual(answer.get("error"), "unknown_template", answer)
                with self.assertRaises(Exception):
                    render(self.jinja.from_string(template), MESSAGES)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
