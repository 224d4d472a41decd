#!/usr/bin/env python3
"""Puts gearkv into a llama.cpp tree: apply.py TREE. Copies the adapter to TREE/src and inserts its calls in seven files
of the engine, each at a place that a regular expression must match exactly once; otherwise nothing is written. A tree
that has the calls already gets the adapter anew."""

import pathlib
import re
import shutil
import sys

here = pathlib.Path(__file__).parent
sources = ["llama-gearkv.cpp", "llama-gearkv-seqs.cpp", "llama-gearkv-replay.cpp", "llama-gearkv-saved.cpp"]
own_files = ["llama-gearkv.h", "llama-gearkv-seqs.h", *sources]
texts, misses, n_lines = {}, [], 0


def edit(name, anchor, new, where="after"):
    """Inserts `new` before or after the place, or puts it there instead."""
    global n_lines
    text = texts.get(name)
    if text is None:
        text = (tree / name).read_text()
    if applied:
        if new not in text:
            misses.append(f"{name}: has none of {new.strip().splitlines()[0]!r}")
        return
    places = list(re.finditer(anchor, text, re.MULTILINE))
    if len(places) != 1:
        misses.append(f"{name}: {len(places)} places match {anchor!r}, expected 1")
        return
    begin, end = places[0].span()
    if where == "after":
        begin = end
    elif where == "before":
        end = begin
    texts[name] = text[:begin] + new + text[end:]
    n_lines += new.count("\n")


def at_head(name, method, line, owner="llama_kv_cache"):
    """Inserts a line at the head of a method."""
    edit(name, rf"^\S[^\n]*\b{owner}::{method}\([^)]*\)( const)? \{{\n", f"    {line}\n")


def insert_all():
    make = "src/CMakeLists.txt"
    edit(make, r"^    llama-kv-cache\.cpp\n", "".join(f"    {name}\n" for name in sources))
    edit(make, r"^target_link_libraries\(llama PUBLIC ggml\)\n", f"""\
find_package(gearkv REQUIRED)
set_source_files_properties({' '.join(sources)} PROPERTIES COMPILE_OPTIONS -std=c++20)
target_include_directories(llama PRIVATE $<TARGET_PROPERTY:gearkv::core,INTERFACE_INCLUDE_DIRECTORIES>)
target_link_libraries(llama PRIVATE $<LINK_ONLY:gearkv::core>)
""")

    # A SPEC as the engine's cache type.
    options = "common/arg.cpp"
    edit(options, r"^static ggml_type kv_cache_type_from_str\(", "LLAMA_API bool llama_gearkv_cache_type(const char * value, int which); // llama-gearkv.h\n\n", "before")
    for which, x in enumerate("kv"):
        edit(options, rf"^            (?=params\.cache_type_{x} = kv_cache_type_from_str\(value\);\n)",
             f"            if (llama_gearkv_cache_type(value.c_str(), {which})) {{ return; }}\n            ", "instead")

    # The context's parameters, for caches that are made with them; and a step that failed.
    model = "src/llama-model.cpp"
    edit(model, r'^#include "llama-model\.h"\n', '#include "llama-gearkv.h"\n')
    at_head(model, "create_memory", "const llama_gearkv_scope gear_scope(cparams);", "llama_model")
    context = "src/llama-context.cpp"
    edit(context, r'^#include "llama-context\.h"\n', '#include "llama-gearkv.h"\n')
    edit(context, r"^    auto status = ggml_backend_sched_graph_compute_async\(sched\.get\(\), gf\);\n", """\
    if (llama_gearkv_failed() && status == GGML_STATUS_SUCCESS) {
        status = GGML_STATUS_FAILED;
    }
""")

    # One operator in place of the products, or of flash attention.
    graph = "src/llama-graph.cpp"
    edit(graph, r'^#include "llama-graph\.h"\n', '#include "llama-gearkv.h"\n')
    edit(graph, r"^ggml_tensor \* llm_graph_context::build_attn_mha\([^)]*\) const \{\n", """\
    if (ggml_tensor * cur = llama_gearkv_attn(ctx0, il, q, k, v, sinks, {
            kq_scale, hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f, hparams.f_max_alibi_bias,
            cparams.causal_attn, kq_b == nullptr && v_mla == nullptr && n_kv_max == 0 })) {
        ggml_build_forward_expand(gf, cur);
        return cur;
    }
""")

    # The cache: owns what gearkv holds, and keeps one row a layer for itself.
    header, cache = "src/llama-kv-cache.h", "src/llama-kv-cache.cpp"
    edit(header, r'^#include "llama-graph\.h"\n', '#include "llama-gearkv.h"\n')
    edit(header, r"^    ~llama_kv_cache\(\) = default;\n", "\n    llama_gearkv_ptr gear; // holds the keys and values, if any\n")
    edit(cache, r"^    const bool is_mla = hparams\.is_mla\(\);\n", """\
    gear = llama_gearkv_new(model, hparams, { kv_size, n_seq_max, n_stream, n_swa, swa_type, offload, other != nullptr, type_k, type_v }, filter);
    const uint32_t n_rows = gear ? 1 : kv_size;
""")
    for x in "kv":
        edit(cache, rf"(?<=ggml_new_tensor_3d\(ctx, type_{x}, n_embd_{x}_gqa, )kv_size(?=, n_stream\))", "n_rows", "instead")
        edit(cache, rf"(?<=ggml_view_2d\(ctx, {x}, n_embd_{x}_gqa, )kv_size(?=, {x}->nb\[1\])", "n_rows", "instead")

    def call(method, line):
        at_head(cache, method, f"if (gear) {{ {line} }}")

    call("clear", "llama_gearkv_clear(*gear);")
    call("seq_rm", "if (!llama_gearkv_seq_rm(*gear, seq_id, p0, p1)) { return false; }")
    call("seq_cp", "llama_gearkv_seq_cp(*gear, seq_id_src, seq_id_dst, p0, p1);")
    call("seq_keep", "llama_gearkv_seq_keep(*gear, seq_id);")
    call("seq_add", "llama_gearkv_seq_add(*gear, seq_id, p0, p1, shift);")
    call("seq_div", "llama_gearkv_seq_div(*gear, seq_id, p0, p1, d);")
    edit(cache, r"^    return (?=cells\.seq_pos_min\(seq_id\);\n)",
         "    return gear ? llama_gearkv_pos_min(*gear, seq_id, cells.seq_pos_min(seq_id)) : ", "instead")
    call("cpy_k", "return llama_gearkv_store(*gear, il, map_layer_ids.at(il), 0, k_cur);")
    call("cpy_v", "return llama_gearkv_store(*gear, il, map_layer_ids.at(il), 1, v_cur);")
    call("get_k", "return llama_gearkv_fetch(*gear, il, map_layer_ids.at(il), 0);")
    call("get_v", "return llama_gearkv_fetch(*gear, il, map_layer_ids.at(il), 1);")
    for x in ("k_idxs", "v_idxs", "kq_mask"):  # not in the graph then
        call(f"set_input_{x}", "if (!dst->buffer) { return; }")
    # Keys turn when they are next attended.
    edit(cache, r"(?<=^        if \(hparams\.rope_type != LLAMA_ROPE_TYPE_NONE)(?=\) \{\n            ggml_backend_sched_reset)", " && !gear")
    edit(cache, r"^    kv->apply_ubatch\(sinfos\[i_cur\], ubatches\[i_cur\]\);\n",
         "    if (kv->gear && !llama_gearkv_begin(*kv->gear, ubatches[i_cur])) { return false; }\n")
    edit(cache, r"^(?=        state_write_data\(io, cr\);\n)", "        if (gear) { llama_gearkv_write(*gear, io, seq_id, s); continue; }\n")
    edit(cache, r"(?<=^            res = res && )state_read_data\(io, strm, cell_count, sinfo\)(?=;\n)",
         "(gear ? llama_gearkv_read(*gear, io, seq_id) : state_read_data(io, strm, cell_count, sinfo))", "instead")
    edit(cache, r"^void llama_kv_cache::state_clear\([^)]*sinfo\) \{\n",
         "    if (gear) { seq_id == -1 ? clear(true) : (void) seq_rm(seq_id, -1, -1); return; }\n")


if len(sys.argv) != 2:
    sys.exit(__doc__)
tree = pathlib.Path(sys.argv[1])
if not (tree / "src/llama-kv-cache.cpp").is_file():
    sys.exit(f"{tree} is not a llama.cpp tree: no src/llama-kv-cache.cpp")
applied = "gearkv" in (tree / "src/llama-kv-cache.cpp").read_text()
insert_all()
if misses:
    why = "its calls are those of another version of this script: begin with a fresh tree" if applied else \
        "this tree is not of a version the anchors fit"
    sys.exit("\n".join(misses + [f"nothing was written: {why}"]))
for name, text in texts.items():
    (tree / name).write_text(text)
print("the calls are there already" if applied else f"{n_lines} lines more in {len(texts)} files of {tree}")
for name in own_files:
    file = tree / "src" / name
    if not file.exists() or file.read_bytes() != (here / name).read_bytes():  # else there is nothing to build anew
        shutil.copyfile(here / name, file)
