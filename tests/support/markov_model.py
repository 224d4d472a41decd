"""A model that says what it was told to say: after each token always the same one follows.

The file is a sound llama GGUF with a byte-level vocabulary and the marks of chatml. Its layers add nothing, so that the
next token depends on the last one alone; the cache holds zeros.
"""
import struct

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good."
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
N_EMBD = 288  # a channel for each of the 259 tokens


def byte_characters():
    """The character that stands for each byte in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


def entry(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def strings(values):
    return struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))


def floats(values):
    return struct.pack("<%df" % len(values), *values)


def write(path, says, loops=False, n_ctx=4096, template=TEMPLATE, marks=MARKS, more=()):
    """After a line end the model says `says`, bytes that each occur once in it, and ends; with `loops` it begins anew.

    `more` are entries of metadata beside those it needs.
    """
    tokens = list(marks) + byte_characters()
    n_vocab = len(tokens)
    follows = {}
    path_of_tokens = [3 + ord("\n")] + [3 + byte for byte in says]
    assert len(set(path_of_tokens)) == len(path_of_tokens), "each byte can be followed by one other alone"
    for now, then in zip(path_of_tokens, path_of_tokens[1:]):
        follows[now] = then
    follows[path_of_tokens[-1]] = path_of_tokens[1] if loops else 2

    embedding = [0.0] * (n_vocab * N_EMBD)
    output = [0.0] * (n_vocab * N_EMBD)
    for token in range(n_vocab):
        embedding[token * N_EMBD + token] = 1.0
        output[follows.get(token, 2) * N_EMBD + token] = 1.0
    zeros = lambda n: [0.0] * n
    ones = lambda n: [1.0] * n
    tensors = [
        ("token_embd.weight", [N_EMBD, n_vocab], embedding),
        ("blk.0.attn_norm.weight", [N_EMBD], ones(N_EMBD)),
        ("blk.0.attn_q.weight", [N_EMBD, 16], zeros(N_EMBD * 16)),
        ("blk.0.attn_k.weight", [N_EMBD, 8], zeros(N_EMBD * 8)),
        ("blk.0.attn_v.weight", [N_EMBD, 8], zeros(N_EMBD * 8)),
        ("blk.0.attn_output.weight", [16, N_EMBD], zeros(16 * N_EMBD)),
        ("blk.0.ffn_norm.weight", [N_EMBD], ones(N_EMBD)),
        ("blk.0.ffn_gate.weight", [N_EMBD, 8], zeros(N_EMBD * 8)),
        ("blk.0.ffn_up.weight", [N_EMBD, 8], zeros(N_EMBD * 8)),
        ("blk.0.ffn_down.weight", [8, N_EMBD], zeros(8 * N_EMBD)),
        ("output_norm.weight", [N_EMBD], ones(N_EMBD)),
        ("output.weight", [N_EMBD, n_vocab], output),
    ]
    u32 = lambda value: struct.pack("<I", value)
    entries = [
        entry("general.architecture", 8, text("llama")),
        entry("llama.block_count", 4, u32(1)),
        entry("llama.context_length", 4, u32(n_ctx)),
        entry("llama.embedding_length", 4, u32(N_EMBD)),
        entry("llama.feed_forward_length", 4, u32(8)),
        entry("llama.attention.head_count", 4, u32(2)),
        entry("llama.attention.head_count_kv", 4, u32(1)),
        entry("llama.attention.key_length", 4, u32(8)),
        entry("llama.attention.value_length", 4, u32(8)),
        entry("llama.rope.dimension_count", 4, u32(8)),
        entry("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)),
        entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        entry("tokenizer.ggml.model", 8, text("gpt2")),
        entry("tokenizer.ggml.pre", 8, text("smollm")),
        entry("tokenizer.ggml.tokens", 9, strings(tokens)),
        entry("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, n_vocab) + struct.pack("<%di" % n_vocab, *[3] * 3 + [1] * 256)),
        entry("tokenizer.ggml.merges", 9, strings([])),
        entry("tokenizer.ggml.bos_token_id", 4, u32(1)),
        entry("tokenizer.ggml.eos_token_id", 4, u32(2)),
        entry("tokenizer.ggml.add_bos_token", 7, b"\0"),
    ]
    entries += more
    if template is not None:
        entries.append(entry("tokenizer.chat_template", 8, text(template)))
    infos, data = b"", b""
    for name, dims, values in tensors:
        infos += text(name) + u32(len(dims)) + struct.pack("<%dQ" % len(dims), *dims) + struct.pack("<IQ", 0, len(data))
        data += floats(values)
        data += b"\0" * (-len(data) % 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + infos
    header += b"\0" * (-len(header) % 32)
    with open(path, "wb") as file:
        file.write(header + data)
