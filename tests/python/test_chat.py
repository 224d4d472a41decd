"""Conversations, with the bundled model and a template by name."""
import os

import gearkv
import pytest

PATH = os.path.join(os.environ["GEARKV_SOURCE"], "examples", "models", "tiny-q8_0.gguf")
pytestmark = pytest.mark.skipif(not gearkv.has_decoder, reason="built without the decoder")


@pytest.fixture(scope="module")
def model():
    return gearkv.Model(PATH)


def test_templates():
    assert "chatml" in gearkv.ChatTemplate.names()
    chatml = gearkv.ChatTemplate("chatml")
    messages = [gearkv.Message("system", "Be brief."), gearkv.Message("user", "Hello")]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert chatml.render(messages) == expected + "<|im_start|>assistant\n"
    assert chatml.render(messages, answer=False) == expected
    long = gearkv.Message("user", "word " * 3000)
    assert long.content.strip() in chatml.render([long])
    with pytest.raises(gearkv.Error, match="unknown_template"):
        gearkv.ChatTemplate("no such")
    with pytest.raises(gearkv.Error, match="unknown_template"):
        gearkv.ChatTemplate(text="{{ nothing }}")
    with pytest.raises(TypeError):
        gearkv.ChatTemplate()
    with pytest.raises(ValueError, match="role"):
        chatml.render([gearkv.Message("robot", "Hello")])
    with pytest.raises(gearkv.Error, match="bad_conversation"):
        gearkv.ChatTemplate("gemma").render([gearkv.Message("assistant", "a"), gearkv.Message("assistant", "b")])


def test_what_was_said_is_not_computed_again(model):
    chat = model.chat(template="chatml", system="Be brief.", n_ctx=1024)
    first = "".join(chat.ask("Who are you?", max_tokens=8))
    held = chat.session.tokens()
    assert [message.role for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1].content == first and list(chat.messages[-1].tokens) == held[-8:]
    asked = chat.messages + [gearkv.Message("user", "And now?")]
    tokens = chat.template.encode(asked, model.tokenizer)
    assert tokens[: len(held)] == held
    second = "".join(chat.ask("And now?", max_tokens=8))
    # As one who computes all of it.
    alone = model.session("gear-4", n_ctx=1024)
    assert alone.sync(tokens) == 0
    assert len(second) > 0 and len(chat.messages) == 5
    assert chat.session.tokens()[: len(tokens)] == tokens


def test_drafts_change_no_answer(model):
    answers, stats = [], None
    for drafts in (False, True):
        session = model.session("gear-2", n_ctx=512, rollback_tokens=8)
        chat = gearkv.Chat(session, template="chatml")
        speculation = gearkv.Speculation(session) if drafts else None
        answers.append(["".join(chat.ask(text, max_tokens=20, speculation=speculation)) for text in ("Hello", "And?")])
        if speculation is not None:
            stats = speculation.stats()
            with pytest.raises(ValueError, match="another session"):
                model.chat(template="chatml").ask("?", speculation=speculation)
    assert answers[0] == answers[1] and stats.n_tokens > 0


def test_an_answer_that_is_left_belongs_to_the_conversation(model):
    chat = model.chat(template="chatml", n_ctx=512)
    answer = chat.ask("Tell me more.", max_tokens=50)
    begun = next(answer)
    answer.close()
    assert chat.messages[-1].role == "assistant" and chat.messages[-1].content == begun
    assert list(chat.messages[-1].tokens) == chat.session.tokens()[-len(chat.messages[-1].tokens) :]
    n_messages = len(chat.messages)
    with pytest.raises(gearkv.Error, match="prompt_too_long"):
        next(chat.ask("word " * 2000))
    assert len(chat.messages) == n_messages
    assert "".join(chat.ask("And?", max_tokens=3))
    with pytest.raises(gearkv.InvalidValue):
        chat.ask("And?", top_p=7.0)
    with pytest.raises(gearkv.Error, match="unknown_template"):
        model.chat()
