#!/usr/bin/env python3
"""Renders random conversations with the library and with Jinja itself. Usage: oracle_test.py RENDERER

The templates are written for this test, in the shapes of the public ones: what each prints, and how it treats
system texts, white space, dates and thoughts. Ends with 77 when jinja2 is missing (Debian: python3-jinja2).
"""
import random
import sys
import unittest

from jinja_oracle import DATE, Renderer, TemplateError, environment, render, text_of

RENDERER = sys.argv[1]
LOOP = "{% for message in messages %}"
SPLIT = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
"""
ALTERNATE = """{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('users and assistants take turns') }}
    {%- endif %}
"""
CHATML_TURN = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
CHATML_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def brackets(question, answer, place="loop.first", bos="{{- bos_token }}\n", gap="\\n\\n"):
    """A template of the Mistral kind: what is around questions, what prints an answer, where the system text goes."""
    before, after = question
    return (
        SPLIT + bos + ALTERNATE + "    {%- if message['role'] == 'user' %}\n"
        "        {%- if " + place + " and system_message is defined %}\n"
        "            {{- '" + before + "' + system_message + '" + gap + "' + message['content'] + '" + after + "' }}\n"
        "        {%- else %}\n"
        "            {{- '" + before + "' + message['content'] + '" + after + "' }}\n"
        "        {%- endif %}\n"
        "    {%- elif message['role'] == 'assistant' %}\n"
        "        {{- " + answer + " }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{#- '[AVAILABLE_TOOLS]' is left out of this comment's template -#}"
    )


TOOLS = "{%- if tools %}{{- '[AVAILABLE_TOOLS] [' + tools + '[/AVAILABLE_TOOLS]' }}{%- endif %}\n"


def gemma(system):
    return (
        "{{ bos_token }}" + system + "{%- for message in loop_messages -%}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
        "        {{ raise_exception(\"take turns\") }}\n"
        "    {%- endif -%}\n"
        "    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\n"
        "    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}\n"
        "    {{- message['content'] | trim }}\n"
        "    {{- '<end_of_turn>\n' }}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}\n"
    )


LLAMA3_TURNS = (
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}\n"
)


def llama31(date):
    return (
        "{{- bos_token }}\n{%- if not date_string is defined %}\n" + date + "{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system_message = \"\" %}\n"
        "{%- endif %}\n"
        "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n"
        "{%- if tools %}{{- \"Environment: some tools of <|im_start|>\\n\" }}{%- endif %}\n"
        "{{- \"Cutting Knowledge Date: May 2022\\n\" }}\n"
        "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n"
        "{{- system_message }}\n"
        "{{- \"<|eot_id|>\" }}\n" + LLAMA3_TURNS
    )


GRANITE_TURNS = (
    "{%- for message in loop_messages %}\n"
    "    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}\n"
    "    {%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}\n"
    "{%- endfor %}"
)


def bars(end_question, end_answer, last="", after="\\n"):
    turn = "{%% %s message['role'] == '%s' %%}{{ '<|%s|>" + after + "' + message['content'] + %s }}"
    return (
        LOOP + turn % ("if", "system", "system", end_question) + turn % ("elif", "user", "user", end_question)
        + turn % ("elif", "assistant", "assistant", end_answer) + "{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>" + after + "' }}{% endif %}{% endfor %}" + last
    )


# name: (the shape, the template, whether it takes a system text)
TEMPLATES = {
    "chatml": ("chatml", LOOP + CHATML_TURN + "{% endfor %}" + CHATML_ASK, True),
    "chatml, escaped line ends": ("chatml", (LOOP + CHATML_TURN + "{% endfor %}" + CHATML_ASK).replace("\n", "\\n"), True),
    "chatml with BOS": ("chatml", "{{ bos_token }}" + LOOP + CHATML_TURN + "{% endfor %}" + CHATML_ASK, True),
    "chatml, trimmed": ("chatml", LOOP + CHATML_TURN.replace("['content']", "['content'] | trim") + "{% endfor %}" + CHATML_ASK, True),
    "chatml with a default": (
        "chatml",
        LOOP + "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Bob, made by me"
        "<|im_end|>\n' }}{% endif %}" + CHATML_TURN + "{% endfor %}" + CHATML_ASK,
        True,
    ),
    "chatml with a default in a branch": (
        "chatml",
        "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {%- if messages[0]['role'] == 'system' %}\n"
        "        {{- messages[0]['content'] }}\n    {%- else %}\n        {{- 'You are Bob.' }}\n    {%- endif %}\n"
        "    {{- \"\\n\\n# Tools\\n\\n[INST] is not a mark here<|im_end|>\\n\" }}\n{%- else %}\n"
        "    {%- if messages[0]['role'] == 'system' %}\n"
        "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
        "    {%- else %}\n        {{- '<|im_start|>system\\nYou are Bob.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
        "{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first)"
        " or (message.role == \"assistant\" and not message.tool_calls) %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
        True,
    ),
    "chatml with an assigned default": (
        "chatml",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
        "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = 'Be good.' %}"
        "{% endif %}{% for message in loop_messages %}{% if loop.index0 == 0 %}{{ '<|im_start|>system\n' + "
        "system_message + '<|im_end|>\n' }}{% endif %}" + CHATML_TURN + "{% endfor %}" + CHATML_ASK,
        True,
    ),
    "chatml that forgets thoughts": (
        "chatml",
        "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}\n{%- for message in messages %}\n"
        "    {%- if message.role == 'assistant' %}\n        {%- set content = message.content %}\n"
        "        {%- if '</think>' in message.content and loop.index0 < ns.last %}\n"
        "            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n        {%- endif %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}\n    {%- else %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}\n",
        True,
    ),
    "phi-4": (
        "phi-4",
        LOOP + "".join(
            "{% " + branch + " (message['role'] == '" + role + "') %}{{'<|im_start|>" + role + "<|im_sep|>' + "
            "message['content'] + '<|im_end|>'}}"
            for branch, role in (("if", "system"), ("elif", "user"), ("elif", "assistant"))
        ) + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        True,
    ),
    "llama3": (
        "llama3",
        LOOP + "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] |"
        " trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        True,
    ),
    "llama3.1": ("llama3", llama31("    {%- set date_string = \"26 Jul 2024\" %}\n"), True),
    "llama3.2": (
        "llama3",
        llama31(
            "    {%- if strftime_now is defined %}\n        {%- set date_string = strftime_now(\"%d %b %Y\") %}\n"
            "    {%- else %}\n        {%- set date_string = \"26 Jul 2024\" %}\n    {%- endif %}\n"
        ),
        True,
    ),
    "mistral-v1": ("mistral-v1", brackets((" [INST] ", " [/INST]"), "' ' + message['content'] + eos_token"), True),
    "mistral-v3": ("mistral-v3", TOOLS + brackets(("[INST] ", "[/INST]"), "' ' + message['content']|trim + eos_token", "loop.last"), True),
    "mistral-v3, first question": ("mistral-v3", TOOLS + brackets(("[INST] ", "[/INST]"), "' ' + message['content'] + eos_token"), True),
    "mistral-v3-tekken": ("mistral-v3-tekken", TOOLS + brackets(("[INST]", "[/INST]"), "message['content'] + eos_token", "loop.last"), True),
    "mistral-v7": (
        "mistral-v7",
        "{{ bos_token }}" + LOOP + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
        "{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
        True,
    ),
    "mistral-v7-tekken, dated": (
        "mistral-v7-tekken",
        "{%- set today = strftime_now(\"%Y-%m-%d\") %}\n"
        "{%- set default_system_message = \"You are Bob.\\nIt is \" + today + \".\\n\\nAsk \\\"Where are you?\\\"\" %}\n"
        "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content'] %}\n    {%- set loop_messages = messages[1:] %}\n{%- else %}\n"
        "    {%- set system_message = default_system_message %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
        "{{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}\n{%- for message in loop_messages %}\n"
        "    {%- if message['role'] == 'user' %}\n        {{- '[INST]' + message['content'] + '[/INST]' }}\n"
        "    {%- elif message['role'] == 'assistant' %}\n        {{- message['content'] + eos_token }}\n"
        "    {%- endif %}\n{%- endfor %}",
        True,
    ),
    "gemma": ("gemma", gemma("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                             "{% set loop_messages = messages %}{% set prefix = '' %}"), False),
    "gemma3": ("gemma", gemma("\n{%- if messages[0]['role'] == 'system' -%}\n"
                              "    {%- set prefix = messages[0]['content'] + '\n\n' -%}\n"
                              "    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n"
                              "    {%- set prefix = \"\" -%}\n    {%- set loop_messages = messages -%}\n{%- endif -%}\n"), True),
    "phi-3": ("phi-3", bars("'<|end|>\\n'", "'<|end|>\\n'"), True),
    "phi-4-mini": (
        "phi-4-mini",
        LOOP + "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        True,
    ),
    "zephyr": ("zephyr", bars("eos_token + '\\n'", "eos_token + '\\n'"), True),
    "zephyr, line ends of its own": (
        "zephyr",
        LOOP + "\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        True,
    ),
    "tulu": ("tulu", "{{ bos_token }}" + bars("'\\n'", "eos_token + '\\n'"), True),
    "llama2": (
        "llama2",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
        "messages[0]['content'] %}{% elif false == true and not '<<SYS>>' in messages[0]['content'] %}{% set loop_messages ="
        " messages %}{% set system_message = 'Never said.' %}{% else %}{% set loop_messages = messages %}{% set "
        "system_message = false %}{% endif %}" + ALTERNATE.replace("{%-", "{%").replace("{{-", "{{").replace("\n", "").replace("    ", "")
        + "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
        "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        True,
    ),
    "mistral before v1": (
        "llama2",
        "{{ bos_token }}" + "{% set loop_messages = messages %}" + ALTERNATE
        + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}",
        False,
    ),
    "granite": ("granite", "{%- set loop_messages = messages %}\n" + GRANITE_TURNS, True),
    "granite, dated": (
        "granite",
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n"
        "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n"
        "    {%- set system_message = \"Knowledge ends: April 2024.\nToday's Date: \" + strftime_now('%B %d, %Y') + \". You are Bob.\" %}\n"
        "    {%- if tools and documents %}\n"
        "        {%- set system_message = system_message + \" Use <|tool_call|> and <start_of_turn>.\" %}\n"
        "    {%- elif tools %}\n        {%- set system_message = system_message + \" Use tools.\" %}\n"
        "    {%- else %}\n        {%- set system_message = system_message + \" You help.\" %}\n    {%- endif %}\n"
        "    {%- set loop_messages = messages %}\n{%- endif %}\n"
        "{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}\n" + GRANITE_TURNS,
        True,
    ),
}

TEMPLATES.update({
    "smollm3": (
        "smollm3",
        "{# ───── defaults ───── #}\n{%- if enable_thinking is not defined -%}\n{%- set enable_thinking = true -%}\n{%- endif -%}\n\n"
        "{%- if enable_thinking -%}\n  {%- set mode = '/think' -%}\n{%- else -%}\n  {%- set mode = '/no_think' -%}\n{%- endif -%}\n"
        "{{- '<|im_start|>system\\n' -}}\n\n{%- if messages[0].role == 'system' -%}\n  {%- set told = messages[0].content -%}\n"
        "  {%- if '/no_think' in told -%}\n    {%- set mode = '/no_think' -%}\n  {%- elif '/think' in told -%}\n"
        "    {%- set mode = '/think' -%}\n  {%- endif -%}\n"
        "  {%- set custom = told.replace('/no_think', '').replace('/think', '').rstrip() -%}\n{%- endif -%}\n\n"
        "{%- if '/system_override' in told -%}\n  {{- custom.replace('/system_override', '').rstrip() -}}\n  {{- '<|im_end|>\\n' -}}\n"
        "{%- else -%}\n  {{- '## Metadata\\n\\n' -}}\n  {{- 'Knowledge Cutoff Date: June 2025\\n' -}}\n"
        "  {%- set today = strftime_now('%d %B %Y') -%}\n  {{- 'Today Date: ' ~ today ~ '\\n' -}}\n"
        "  {{- 'Reasoning Mode: ' + mode + '\\n\\n' -}}\n  \n  {{- '## Custom Instructions\\n\\n' -}}\n"
        "  {%- if custom -%}\n    {{- custom + '\\n\\n' -}}\n  {%- elif mode == '/think' -%}\n    {{- 'You are Bob, who thinks.\\n\\n' -}}\n"
        "  {%- else -%}\n    {{- 'You are Bob.\\n\\n' -}}\n  {%- endif -%}\n  {%- if xml_tools or python_tools -%}\n"
        "    {{- '### Tools\\n\\n' -}}\n    {%- for tool in xml_tools[:] -%}{{- (tool | string) -}}{%- endfor -%}\n"
        "    {{- '<|im_end|>\\n' -}}\n  {%- endif -%}\n{%- endif -%}\n{%- for message in messages -%}\n"
        "    {%- set content = message.content if message.content is string else '' -%}\n    {%- if message.role == 'user' -%}\n"
        "        {{ '<|im_start|>' + message.role + '\\n'  + content + '<|im_end|>\\n' }}\n    {%- elif message.role == 'assistant' -%}\n"
        "        {%- if mode == '/think' -%}\n            {{ '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}\n"
        "        {%- else -%}\n            {{ '<|im_start|>assistant\\n' + '<think>\\n\\n</think>\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}\n"
        "        {%- endif -%}\n    {%- endif -%}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n    {%- if mode == '/think' -%}\n"
        "        {{ '<|im_start|>assistant\\n' }}\n    {%- else -%}\n        {{ '<|im_start|>assistant\\n' + '<think>\\n\\n</think>\\n'  }}\n"
        "    {%- endif -%}\n{%- endif -%}",
        True,
    ),
    "a guard that quotes its conversation": (
        "llama3",
        "{% if (messages | length) % 2 == 0 %}{% set role = 'Agent' %}{% else %}{% set role = 'User' %}{% endif %}"
        "{{ '<|start_header_id|>user<|end_header_id|>\\n\\nIs the last message of ' + role + ' harmless?\\n' }}"
        "{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{% set role = 'User' %}"
        "{% else %}{% set role = 'Agent' %}{% endif %}{{ role + ': ' + content.strip() + '\\n\\n' }}{% endfor %}"
        "{{ 'Say it.<|eot_id|>' }}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        True,
    ),
    "contents as lists of parts, too": (
        "chatml",
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' or 'image' in part %}"
        "{{ '<|image_pad|>' }}{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        True,
    ),
    "marks of its own and answers without their thoughts": (
        "custom",
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(is_first=false, system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
        "{%- set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
        "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
        "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}",
        True,
    ),
    "a macro, a part of the messages and the last question": (
        "chatml",
        "{%- macro turn(role, content, end='<|im_end|>') -%}{{ '<|im_start|>' ~ role ~ '\n' ~ content ~ end ~ '\n' }}{%- endmacro -%}\n"
        "{%- set ns = namespace(last=messages|length - 1, seeking=true) -%}\n"
        "{%- for message in messages[::-1] -%}\n{%- set index = (messages|length - 1) - loop.index0 -%}\n"
        "{%- if ns.seeking and message.role == 'user' and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) -%}\n"
        "{%- set ns.seeking = false -%}{%- set ns.last = index -%}\n{%- endif -%}\n{%- endfor -%}\n"
        "{%- for message in messages -%}\n{%- set content = message.content -%}\n"
        "{%- if message.role == 'assistant' and '</think>' in content -%}\n"
        "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}\n"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}\n"
        "{%- if loop.index0 > ns.last -%}{%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content -%}{%- endif -%}\n"
        "{%- endif -%}\n{{- turn(message.role, content) -}}\n{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
        True,
    ),
})

WORDS = ["a", "Why?", "naïve", "日本", "\n", "\n\n", " ", "  ", "\t", "\u00a0", "\u3000", "{{ x }}", "<|im_end|>", "[INST]",
         "</s>", "<think>\nhm\n</think>\n\nso", "'", '"', "\\n", "<|eot_id|>", "🙂"]


class Oracle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.renderer = Renderer(RENDERER)
        jinja = environment()
        cls.compiled = {template: jinja.from_string(template) for _, template, _ in TEMPLATES.values()}

    @classmethod
    def tearDownClass(cls):
        cls.renderer.close()

    def conversation(self, random_, takes_system, n_turns):
        content = lambda: "".join(random_.choices(WORDS, k=random_.randint(1, 6)))
        messages = [{"role": ("user", "assistant")[i % 2], "content": content()} for i in range(2 * n_turns - 1)]
        if takes_system and random_.random() < 0.5:
            messages.insert(0, {"role": "system", "content": content()})
        return messages

    def expected(self, template, messages, **more):
        return render(self.compiled[template], messages, **more)

    def test_random_conversations_are_rendered_as_jinja_renders_them(self):
        for title, (name, template, takes_system) in TEMPLATES.items():
            random_ = random.Random(title)
            for round_ in range(60):
                messages = self.conversation(random_, takes_system, random_.randint(1, 4))
                with self.subTest(template=title, messages=messages):
                    answer = self.renderer.ask(template=template, messages=messages, date=DATE)
                    self.assertEqual(answer.get("name"), name, answer)
                    self.assertEqual(text_of(answer), self.expected(template, messages))

    def test_contents_are_never_markup(self):
        for title, (_, template, takes_system) in TEMPLATES.items():
            random_ = random.Random(title)
            with self.subTest(template=title):
                messages = self.conversation(random_, takes_system, 3)
                for i, message in enumerate(messages):
                    message["content"] = "<|im_end|>x%d</s>" % i
                answer = self.renderer.ask(template=template, messages=messages, date=DATE)
                markup = "".join(text for text, is_markup in answer["segments"] if is_markup)
                plain = "".join(text for text, is_markup in answer["segments"] if not is_markup)
                for i, message in enumerate(messages):
                    self.assertNotIn("x%d" % i, markup)
                    self.assertIn(message["content"], plain)

    def test_answers_as_the_last_messages_and_thoughts_turned_off(self):
        for title, (_, template, takes_system) in TEMPLATES.items():
            random_ = random.Random(title)
            for round_ in range(20):
                messages = self.conversation(random_, takes_system, random_.randint(2, 3))[:random_.choice((-1, None))]
                generate, thinking = random_.random() < 0.5, random_.random() < 0.5
                with self.subTest(template=title, messages=messages, generate=generate, thinking=thinking):
                    answer = self.renderer.ask(template=template, messages=messages, date=DATE, generate=generate, thinking=thinking)
                    more = {} if thinking else {"enable_thinking": False, "thinking": False}
                    self.assertEqual(text_of(answer), self.expected(template, messages, add_generation_prompt=generate, **more))

    def test_system_texts_that_steer(self):
        template = TEMPLATES["smollm3"][1]
        for system in ("", "/no_think", "a /think b", "/no_think /think", "S /system_override ", "\n", " x /no_think\n", "/system_override"):
            for thinking in (True, False):
                messages = [{"role": "system", "content": system}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "\n\nA"},
                            {"role": "user", "content": "R"}]
                with self.subTest(system=system, thinking=thinking):
                    answer = self.renderer.ask(template=template, messages=messages, date=DATE, thinking=thinking)
                    more = {} if thinking else {"enable_thinking": False}
                    self.assertEqual(text_of(answer), self.expected(template, messages, **more))
                    named = self.renderer.ask(name="smollm3", messages=messages, date=DATE, thinking=thinking)
                    if system.strip("/no_think \n"):
                        self.assertEqual(text_of(named), text_of(answer))

    def test_thinking_can_be_turned_off_where_the_template_knows_how(self):
        template = TEMPLATES["chatml that forgets thoughts"][1]
        messages = [{"role": "user", "content": "Hi"}]
        answer = self.renderer.ask(template=template, messages=messages, thinking=False)
        self.assertEqual(text_of(answer), self.expected(template, messages, enable_thinking=False))
        self.assertTrue(text_of(answer).endswith("</think>\n\n"))

    def test_what_jinja_refuses_is_refused(self):
        turns = [("user", "user"), ("assistant",), ("user", "assistant", "assistant")]
        for title, (_, template, _) in TEMPLATES.items():
            for roles in turns:
                messages = [{"role": role, "content": "x"} for role in roles]
                with self.subTest(template=title, roles=roles):
                    answer = self.renderer.ask(template=template, messages=messages)
                    try:
                        self.expected(template, messages)
                        self.assertIn("segments", answer)
                    except TemplateError:
                        self.assertEqual(answer.get("error"), "bad_conversation")

    def test_what_extends_is_a_prefix_of_what_goes_on(self):
        n_extending = 0
        for title, (_, template, takes_system) in TEMPLATES.items():
            random_ = random.Random(title)
            for round_ in range(20):
                messages = self.conversation(random_, takes_system, 3)
                short = self.renderer.ask(template=template, messages=messages[:-2], date=DATE)
                if not short["extends"]:
                    continue
                n_extending += 1
                with self.subTest(template=title, messages=messages):
                    whole = self.renderer.ask(template=template, messages=messages, date=DATE)
                    self.assertTrue(text_of(whole).startswith(text_of(short)))
        self.assertGreater(n_extending, 400)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
