"""Models, vocabularies, samplers and sessions, with the bundled model."""
import io
import os
import signal
import threading
import time

import gearkv
import numpy as np
import pytest

PATH = os.path.join(os.environ["GEARKV_SOURCE"], "examples", "models", "tiny-q8_0.gguf")
PROMPT = "It was a fine morning, and the old man said to his daughter,\n"
pytestmark = pytest.mark.skipif(not gearkv.has_decoder, reason="built without the decoder")


@pytest.fixture(scope="module")
def model():
    return gearkv.Model(PATH)


def test_a_model_tells_what_it_is(model):
    assert model.params.family == "llama" and model.params.n_vocab == len(model.tokenizer)
    assert model.metadata["general.architecture"] == "llama"
    tensors = {tensor.name: tensor for tensor in model.tensors}
    assert tensors["token_embd.weight"].shape == (model.params.n_embd, model.params.n_vocab)
    assert len(model.fingerprint) == 32 and model.fingerprint == gearkv.Model(PATH).fingerprint
    assert "llama" in repr(model) and model.params.windows == ()


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(gearkv.FileProblem, match="io_error"):
        gearkv.Model(tmp_path / "none.gguf")
    (tmp_path / "text").write_text("no model")
    with pytest.raises(gearkv.Error) as caught:
        gearkv.Model(tmp_path / "text")
    assert caught.value.name in ("not_a_model", "truncated") and caught.value.code in (1001, 24)
    with pytest.raises(ValueError, match="a zero in path"):
        gearkv.Model(PATH + "\0")


def test_texts_go_to_tokens_and_back(model):
    tokenizer = model.tokenizer
    for text in (PROMPT, "", "naïve café — 日本語 \U0001f642", "a\0b", "x" * 5000):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.decode(np.array(tokens, np.int64)) == text
    assert tokenizer.decode_bytes(tokenizer.encode(b"\xff\xfe")) == b"\xff\xfe"
    if tokenizer.adds_bos:
        assert tokenizer.encode("a")[0] == tokenizer.bos
        assert tokenizer.encode("a", add_special=False)[0] != tokenizer.bos
    token = tokenizer.encode("morning", add_special=False)[0]
    assert tokenizer.find(tokenizer.token_bytes(token)) == token
    assert tokenizer.token_bytes(-1) == b"" and tokenizer.find("no such token at all") is None
    assert all(tokenizer.ends_generation(token) for token in tokenizer.end_of_generation)
    with pytest.raises(gearkv.Error, match="bad_token"):
        tokenizer.decode([tokenizer.n_vocab])
    with pytest.raises(TypeError):
        tokenizer.decode([1.5])
    with pytest.raises(ValueError, match="beyond 32 bits"):
        tokenizer.decode([2**40])


def test_generate_is_an_iterator_of_text(model):
    pieces = model.generate(PROMPT, max_tokens=40)
    first = next(pieces)
    rest = list(pieces)
    text = first + "".join(rest)
    assert len(rest) > 5 and all(isinstance(piece, str) and piece for piece in rest)
    # The same, token by token and by hand.
    session = model.session("gear-4")
    session.prefill(model.tokenizer.encode(PROMPT))
    tokens = []
    for _ in range(40):
        token = int(np.argmax(session.logits()))
        if model.tokenizer.ends_generation(token):
            break
        tokens.append(token)
        session.decode(token)
    assert model.tokenizer.decode(tokens, continues=True) == text
    word = text.split()[3]
    stopped = "".join(model.generate(PROMPT, max_tokens=40, stop=[word]))
    assert stopped == text[: text.index(word)]
    drawn = ["".join(model.generate(PROMPT, max_tokens=20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(TypeError):
        model.generate(PROMPT, tempperature=1.0)
    with pytest.raises(gearkv.InvalidValue, match="top_p"):
        model.generate(PROMPT, top_p=2.0)


def test_a_session_reads_less_when_told(model):
    tokens = model.tokenizer.encode(PROMPT * 40)
    full, some = model.session("gear-4"), model.session("gear-4", mass=0.9, most_share=0.9, negligible=1e-4)
    for session in (full, some):
        session.prefill(tokens)
        session.decode(5)
    assert full.layer_stats(0).n_selections == 0
    assert some.layer_stats(0).n_selections > 0 and some.layer_stats(0).share_read < 1
    assert not np.array_equal(full.logits(), some.logits())
    for bad in ({"mass": 0}, {"most_share": 1.5}, {"negligible": 1}):
        with pytest.raises(gearkv.InvalidValue, match=next(iter(bad))):
            model.session("gear-4", **bad)


def test_a_session_goes_on_where_it_was(model, tmp_path):
    session = model.session("gear-4", n_ctx=512, rollback_tokens=8)
    sampler = gearkv.Sampler(temperature=0.8, top_k=40, seed=7, logit_bias={5: -1.0})
    text = "".join(session.generate(PROMPT, max_tokens=10, sampler=sampler))
    steps = list(session.steps(max_tokens=5, sampler=sampler))
    assert text and steps[-1].token is None and len(steps) == 6
    n_tokens = session.n_tokens
    assert n_tokens == len(model.tokenizer.encode(PROMPT)) + 15 == len(session.tokens())
    assert session.tokens()[-5:] == [step.token for step in steps[:-1]]
    assert session.stats().n_tokens == n_tokens and session.layer_stats(0).n_tokens == n_tokens
    path, sink = tmp_path / "session", io.BytesIO()
    session.save(path, sampler=sampler, note=b"a note")
    session.save(sink, sampler=sampler, note=b"a note")
    data = session.to_bytes(sampler=sampler, note=b"a note")
    assert path.read_bytes() == sink.getvalue() == data
    state = sampler.to_bytes()
    expected = "".join(session.generate(max_tokens=10, sampler=sampler))
    for load in (
        lambda drawing: gearkv.Session.load(path, model, "gear-4", sampler=drawing, n_ctx=512),
        lambda drawing: gearkv.Session.load(path, model, "gear-4", sampler=drawing, loading="map"),
        lambda drawing: gearkv.Session.load(io.BytesIO(data), model, "gear-4", sampler=drawing),
        lambda drawing: gearkv.Session.from_bytes(data, model, "gear-4", sampler=drawing, threads=1),
    ):
        drawing = gearkv.Sampler(temperature=0.8, top_k=40, seed=99, logit_bias={5: -1.0})
        loaded = load(drawing)
        assert loaded.note == b"a note" and drawing.to_bytes() == state
        assert "".join(loaded.generate(max_tokens=10, sampler=drawing)) == expected
    with pytest.raises(gearkv.Error, match="other_codec"):
        gearkv.Session.from_bytes(data, model, "gear-2")
    with pytest.raises(gearkv.FileProblem, match="protected_file"):
        session.save(PATH)

    class Broken:
        def read(self, n):
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        gearkv.Session.load(Broken(), model, "gear-4")


def test_drafts_forks_and_shifts(model):
    session = model.session("gear-4", n_ctx=256, chunk=32, rollback_tokens=8)
    tokens = model.tokenizer.encode(PROMPT)
    every = session.prefill(tokens, all_logits=True)
    assert every.shape == (len(tokens), model.params.n_vocab) and np.array_equal(every[-1], session.logits())
    fork = session.fork()
    draft = fork.decode_draft(tokens[:3])
    for i in range(3):
        session.decode(tokens[i])
        assert np.array_equal(session.logits(), draft[i])
    assert fork.truncate(len(tokens)) is True and fork.logits() is None
    assert fork.sync(tokens[:-2]) == len(tokens) - 3
    assert session.remove(2, 4) is False and session.n_tokens == len(tokens) - 1
    session.reset()
    assert session.tokens() == [] and session.logits() is None
    with pytest.raises(ValueError, match="nothing was fed"):
        next(session.generate())
    with pytest.raises(gearkv.Error, match="prompt_too_long"):
        session.prefill([5] * 257)
    with pytest.raises(gearkv.Error, match="empty_prompt"):
        session.prefill([])
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.decode(1)
    assert repr(session) == "<gearkv.Session, closed>"


def test_many_sessions_are_fed_at_once(model):
    workspace = gearkv.Workspace()
    sessions = [model.session("gear-2", n_ctx=64, workspace=workspace) for _ in range(2)] + [model.session("f16", n_ctx=64)]
    alone = [model.session("gear-2", n_ctx=64) for _ in range(2)] + [model.session("f16", n_ctx=64)]
    for i in range(3):
        for session in (sessions[i], alone[i]):
            session.prefill([5 + i, 9, 14 + i])
    for step in range(3):
        gearkv.decode_batch(sessions, [20 + step, 30, 40])
        for session, token in zip(alone, [20 + step, 30, 40]):
            session.decode(token)
        assert all(np.array_equal(a.logits(), b.logits()) for a, b in zip(sessions, alone))
    for bad in ([1, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="one of each"):
            gearkv.decode_batch(sessions, bad)
    with pytest.raises(gearkv.InvalidValue, match="twice"):
        gearkv.decode_batch([sessions[0], sessions[0]], [1, 2])
    with pytest.raises(gearkv.Error, match="bad_token") as caught:
        gearkv.decode_batch(sessions, [1, 2, 10**6])
    assert caught.value.errors == [None, None, None]
    assert [session.n_tokens for session in sessions] == [6, 6, 6]
    with pytest.raises(gearkv.InvalidValue):
        sessions[0].layer_stats(-1)
    with pytest.raises(gearkv.InvalidValue):
        model.session("f16", n_ctx=-1)


def test_drafts_change_no_token(model):
    plain = "".join(model.generate(PROMPT, max_tokens=48, n_ctx=256))
    for drafter in (None, model.session("f16", n_ctx=256)):
        session = model.session("gear-4", n_ctx=256, rollback_tokens=8)
        speculation = gearkv.Speculation(session, drafter=drafter)
        assert "".join(session.generate(PROMPT, max_tokens=48, speculation=speculation)) == plain
        stats = speculation.stats()
        assert stats.n_tokens == 48 == stats.n_passes + stats.n_right and stats.n_right <= stats.n_drafted
        assert session.n_tokens == speculation.n_tokens == len(model.tokenizer.encode(PROMPT)) + 48
        if drafter is not None:
            assert stats.n_passes < 24
        # By hand, and left in the middle.
        other = model.session("gear-4", n_ctx=256)
        assert "".join(other.generate(PROMPT, max_tokens=48)) == plain
        for _ in range(6):
            assert np.array_equal(speculation.logits(), other.logits())
            token = int(np.argmax(other.logits()))
            speculation.decode(token)
            other.decode(token)
        speculation.settle()
        assert session.tokens() == other.tokens() and np.array_equal(speculation.logits(), other.logits())
        left = session.generate("Then ", speculation=speculation)
        next(left)
        left.close()
        session.decode(20)
        assert speculation.n_tokens == session.n_tokens
    with pytest.raises(ValueError, match="another session"):
        other.generate(PROMPT, speculation=speculation)
    with pytest.raises(gearkv.InvalidValue, match="expected at most 0"):
        gearkv.Speculation(other)
    with pytest.raises(gearkv.InvalidValue, match="its own drafter"):
        gearkv.Speculation(session, drafter=session)
    with pytest.raises(gearkv.InvalidValue):
        gearkv.Speculation(session, n_draft=-1)
    session.close()
    with pytest.raises(ValueError, match="closed"):
        speculation.decode(20)
    speculation.close()
    assert repr(speculation) == "<gearkv.Speculation, closed>"


def test_generation_ends_with_the_context(model):
    session = model.session("q8", n_ctx=24)
    n = sum(1 for _ in session.steps("Once", logit_bias={token: float("-inf") for token in model.tokenizer.end_of_generation}))
    assert session.n_tokens == 24 and n > 10


def test_what_a_session_takes(model):
    taken = model.session_bytes("gear-4", n_ctx=512)
    assert taken.weights > 1 << 20 and 0 < taken.cache < model.session_bytes("f16", n_ctx=512).cache
    fit = model.fit(1 << 30)
    assert fit.fits and fit.spec == "f16" and fit.n_ctx == model.params.n_ctx and fit.reason
    small = model.fit(1 << 10, n_ctx=512, spec="gear-2")
    assert not small.fits and small.spec == "gear-2"


def test_sessions_of_several_threads_are_as_alone(model):
    expected = "".join(model.generate(PROMPT, max_tokens=12))
    found = [None] * 4

    def work(i):
        found[i] = "".join(model.generate(PROMPT, max_tokens=12))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_a_signal_stops_a_prompt_between_chunks(model):
    session = model.session("gear-4", chunk=1)
    prompt = [20] * (session.n_ctx - 1)

    old = signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C does
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            session.prefill(prompt)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert session.n_tokens < len(prompt)
    session.decode(20)


def test_a_session_does_not_outlive_its_process(model):
    session = model.session("gear-4", threads=1)
    session.prefill([20, 30])
    session._process -= 1  # as if this were a child
    with pytest.raises(RuntimeError, match="forked"):
        session.decode(20)
