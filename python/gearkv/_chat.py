"""Conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Optional, Sequence

from ._gearkv import ffi, lib
from ._native import call, chars, text_of
from ._session import Session
from ._speculation import Speculation
from ._text import Sampler, TextWriter, Tokenizer, asked_twice

_ROLES = {"system": lib.GEARKV_SYSTEM, "user": lib.GEARKV_USER, "assistant": lib.GEARKV_ASSISTANT}


@dataclass
class Message:
    """What was said: role is system, user or assistant. An answer's tokens, where they are known, are taken as they
    are."""

    role: str
    content: str
    tokens: Sequence[int] = ()


class ChatTemplate:
    """The shape of a conversation, by a name ("chatml") or by the text of a file's template. Used by any number of
    threads at once."""

    def __init__(self, name: Optional[str] = None, *, text: Optional[str] = None) -> None:
        out = ffi.new("gearkv_chat_template**")
        if (name is None) == (text is None):
            raise TypeError("a name or a text, one of them")
        if name is not None:
            call(lib.gearkv_chat_template_find, chars(name, "name"), out)
        else:
            data = str(text).encode()
            call(lib.gearkv_chat_template_recognise, data, len(data), out)
        self._handle = ffi.gc(out[0], lib.gearkv_chat_template_destroy)
        self.name = text_of(lib.gearkv_chat_template_name(self._handle))

    @staticmethod
    def names() -> list[str]:
        return [name.strip() for name in text_of(lib.gearkv_chat_template_names()).split(",")]

    def _prepare(self, messages: Sequence[Message], answer: bool, thinking: bool) -> tuple[Any, Any, list[Any]]:
        made, kept = ffi.new("gearkv_chat_message[]", len(messages)), []
        for to, message in zip(made, messages):
            if message.role not in _ROLES:
                raise ValueError(f"role {message.role!r}, expected one of {', '.join(_ROLES)}")
            content = message.content.encode("utf-8", "surrogatepass")
            text, tokens = ffi.new("char[]", content), ffi.new("gearkv_token[]", list(message.tokens))
            kept += [text, tokens]
            to.struct_size = ffi.sizeof("gearkv_chat_message")
            to.role, to.content, to.n_bytes = _ROLES[message.role], text, len(content)
            to.tokens, to.n_tokens = tokens, len(tokens)
        options = ffi.new("gearkv_chat_options*")
        lib.gearkv_chat_options_init(options, ffi.sizeof("gearkv_chat_options"))
        options.add_generation_prompt, options.thinking = answer, thinking
        return made, options, kept

    def render(
        self, messages: Sequence[Message], *, bos: str = "", eos: str = "", answer: bool = True, thinking: bool = True
    ) -> str:
        """The text of a conversation, to be looked at; answer: with what asks for the next one."""
        made, options, kept = self._prepare(messages, answer, thinking)
        room, n = asked_twice(
            lambda out, n_room, count, error: lib.gearkv_chat_template_render(
                self._handle,
                made,
                len(made),
                options,
                chars(bos, "bos"),
                chars(eos, "eos"),
                out,
                n_room,
                count,
                error,
            ),
            4096,
            "char",
        )
        del kept
        return ffi.buffer(room, n)[:].decode("utf-8", "replace")

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, answer: bool = True, thinking: bool = True
    ) -> list[int]:
        """The tokens of a conversation; nothing that people wrote becomes a control token."""
        made, options, kept = self._prepare(messages, answer, thinking)
        room, n = asked_twice(
            lambda out, n_room, count, error: lib.gearkv_chat_template_encode(
                self._handle, made, len(made), options, tokenizer._handle, out, n_room, count, error
            ),
            4096,
            "gearkv_token",
        )
        del kept
        return list(room[0:n])


class Chat:
    """A conversation in a session: what was said stays in the cache and is not computed again. The template is the
    file's, or `template` by its name."""

    def __init__(self, session: Session, *, system: Optional[str] = None, template: Optional[str] = None) -> None:
        self.session = session
        text = session.model.tokenizer.chat_template
        self.template = ChatTemplate(text=text) if template is None else ChatTemplate(template)
        self.messages: list[Message] = [] if system is None else [Message("system", system)]

    def ask(
        self,
        question: str,
        *,
        max_tokens: Optional[int] = None,
        stop: Iterable[str] = (),
        sampler: Optional[Sampler] = None,
        speculation: Optional[Speculation] = None,
        thinking: bool = True,
        **sampling: Any,
    ) -> Iterator[str]:
        """Asks, and answers piece by piece; sampling and speculation as in Session.generate. What was answered when the iterator is
        left belongs to the conversation, and nothing does of a question that could not be fed."""
        if sampler is not None and sampling:
            raise TypeError("a sampler and settings of one")
        if speculation is not None and speculation.session is not self.session:
            raise ValueError("a speculation of another session")
        drawing = Sampler(**sampling) if sampler is None else sampler
        tokenizer = self.session.model.tokenizer
        asked = self.messages + [Message("user", question)]
        tokens = self.template.encode(asked, tokenizer, thinking=thinking)
        writer = TextWriter(tokenizer, stop, True)
        return self._answer(asked, tokens, max_tokens, drawing, writer, speculation)

    def _answer(
        self,
        asked: list[Message],
        tokens: list[int],
        max_tokens: Optional[int],
        sampler: Sampler,
        writer: TextWriter,
        speculation: Optional[Speculation],
    ) -> Iterator[str]:
        if speculation is not None:
            speculation.settle()
        self.session.sync(tokens)
        sampler.forget()
        sampler.accept(tokens)
        answer = Message("assistant", "", [])
        self.messages = asked + [answer]
        drawn: list[int] = []
        for step in self.session.draw(max_tokens, sampler, writer, speculation):
            if step.token is not None:
                drawn.append(step.token)
                answer.tokens = drawn
            answer.content += step.text
            if step.text:
                yield step.text
