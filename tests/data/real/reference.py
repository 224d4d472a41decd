#!/usr/bin/env python3
"""Reference logits of a GGUF model in double precision, for tests/decoder/real_test.cpp.

    pip install numpy gguf
    reference.py MODEL.gguf IDS.json OUT.json

IDS.json holds {"ids": [...], "positions": [...]}. Weights are dequantised by the public package gguf, all else is
float64: exact softmax, angles as position * base^(-2 i / d). Written apart from the decoder, for the two families of
models that the test knows (llama and gemma3).

OUT.json: for every position asked for, the logits after that token: its largest ones with their ids, those of some
fixed ids, and the logarithm of the sum of all exponentials.
"""
import hashlib
import json
import sys

import gguf
import numpy as np

N_TOP, N_FIXED = 8, 16


class Model:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.tensors = {t.name: t for t in reader.tensors}
        self.values = {key: field.contents() for key, field in reader.fields.items()
                       if not key.startswith("tokenizer")}
        self.family = self.values["general.architecture"]

    def value(self, key, default=None):
        return self.values.get(self.family + "." + key, default)

    def has(self, name):
        return name in self.tensors

    def weight(self, name):
        tensor = self.tensors[name]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)


def normalise(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def rotate(x, base, adjacent):
    """x: [tokens, heads, d], all channels rotated."""
    n, _, d = x.shape
    angle = np.arange(n)[:, None] * base ** (-2.0 * np.arange(d // 2) / d)
    cosine, sine = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    first = np.s_[..., 0::2] if adjacent else np.s_[..., : d // 2]
    second = np.s_[..., 1::2] if adjacent else np.s_[..., d // 2:]
    out = np.empty_like(x)
    out[first] = x[first] * cosine - x[second] * sine
    out[second] = x[first] * sine + x[second] * cosine
    return out


def attend(query, key, value, window):
    """Causal attention of [tokens, heads, d] over [tokens, kv heads, d]; a window of 0 sees everything."""
    n, n_heads, d = query.shape
    group = n_heads // key.shape[1]
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    hidden = (distance < 0) | ((distance >= window) if window else False)
    out = np.empty_like(query)
    for head in range(n_heads):
        scores = query[:, head] @ key[:, head // group].T / np.sqrt(d)
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ value[:, head // group]
    return out


def run(model, ids):
    gemma = model.family == "gemma3"
    assert gemma or model.family == "llama"
    width = model.value("embedding_length")
    n_heads, n_kv = model.value("attention.head_count"), model.value("attention.head_count_kv")
    d = model.value("attention.key_length", width // n_heads)
    epsilon = model.value("attention.layer_norm_rms_epsilon")
    base = model.value("rope.freq_base")
    embedding = model.weight("token_embd.weight")
    x = embedding[ids] * (np.sqrt(width) if gemma else 1.0)
    for layer in range(model.value("block_count")):
        w = lambda name: model.weight("blk.%d.%s.weight" % (layer, name))
        local = gemma and layer % 6 < 5
        h = normalise(x, w("attn_norm"), epsilon)
        q = (h @ w("attn_q").T).reshape(len(ids), n_heads, d)
        k = (h @ w("attn_k").T).reshape(len(ids), n_kv, d)
        v = (h @ w("attn_v").T).reshape(len(ids), n_kv, d)
        if gemma:
            q, k = normalise(q, w("attn_q_norm"), epsilon), normalise(k, w("attn_k_norm"), epsilon)
        q, k = (rotate(y, 10000.0 if local else base, not gemma) for y in (q, k))
        mixed = attend(q, k, v, model.value("attention.sliding_window") if local else 0)
        branch = mixed.reshape(len(ids), -1) @ w("attn_output").T
        x = x + (normalise(branch, w("post_attention_norm"), epsilon) if gemma else branch)
        h = normalise(x, w("ffn_norm"), epsilon)
        gate, up = h @ w("ffn_gate").T, h @ w("ffn_up").T
        if gemma:
            gate = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1.0 + np.exp(-gate))
        branch = (gate * up) @ w("ffn_down").T
        x = x + (normalise(branch, w("post_ffw_norm"), epsilon) if gemma else branch)
    x = normalise(x, model.weight("output_norm.weight"), epsilon)
    return x, model.weight("output.weight") if model.has("output.weight") else embedding


def main(model_path, ids_path, out_path):
    asked = json.load(open(ids_path))
    model = Model(model_path)
    x, output = run(model, asked["ids"])
    fixed = [int(i) for i in np.linspace(0, len(output) - 1, N_FIXED)]
    positions = []
    for position in asked["positions"]:
        logits = output @ x[position]
        top = np.argsort(-logits)[:N_TOP]
        largest = logits.max()
        positions.append({"position": position, "top_ids": [int(i) for i in top],
                          "top": [round(float(logits[i]), 6) for i in top],
                          "fixed": [round(float(logits[i]), 6) for i in fixed],
                          "logsumexp": round(float(largest + np.log(np.exp(logits - largest).sum())), 6)})
    data = open(model_path, "rb").read()
    json.dump({"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "ids": asked["ids"],
               "fixed_ids": fixed, "positions": positions}, open(out_path, "w"), separators=(",", ":"))


if __name__ == "__main__":
    main(*sys.argv[1:])
