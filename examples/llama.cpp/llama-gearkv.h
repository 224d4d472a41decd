// The keys and values of one llama_kv_cache in gearkv, and attention on them as one operator of the engine's
// graph.
//
// The engine's own cells stay what they are: they say which positions each sequence has, and when there is no
// room. gearkv holds the rows. llama_kv_cache calls what is declared here at the head of its own methods when
// a SPEC is chosen (apply.py puts these calls there); without it none of this runs. Errors are logged once,
// and then are what the engine has for them: no context, llama_decode() != 0, false of seq_rm, 0 bytes of
// state.
#pragma once

#include <cstdint>
#include <memory>

#include "llama-memory.h"
#include "llama.h"

struct ggml_context;
struct ggml_tensor;
struct llama_cparams;
struct llama_hparams;
struct llama_model;
struct llama_ubatch;
class llama_io_read_i;
class llama_io_write_i;

// The engine's own options -ctk (which 0) and -ctv (1): true when the value is a SPEC and no type of the
// engine's, and then contexts of this process use it, before GEARKV_SPEC. -ctk alone is for keys and values,
// -ctv alone leaves keys in f16. Not for several threads at once.
LLAMA_API bool llama_gearkv_cache_type(const char* value, int which);

// What takes the place of the tensors of one llama_kv_cache, which owns it.
struct llama_gearkv;
struct llama_gearkv_delete {
    void operator()(llama_gearkv* gear) const;
};
using llama_gearkv_ptr = std::unique_ptr<llama_gearkv, llama_gearkv_delete>;

// While it lives, caches that this thread makes belong to a context with these parameters.
class llama_gearkv_scope {
  public:
    explicit llama_gearkv_scope(const llama_cparams& cparams);
    ~llama_gearkv_scope();

  private:
    const llama_cparams* outer_;
};

struct llama_gearkv_shape {
    std::uint32_t n_cells;
    std::uint32_t n_seq_max;
    std::uint32_t n_streams;  // above 1: one for each sequence
    std::uint32_t n_swa;
    int swa_type;
    bool offload;
    bool shared;  // shows the cells of another cache
    int type_k, type_v;
};

// Null without a SPEC, and when the cache has no layers. Throws std::runtime_error, which the engine
// makes "no context", when the model or the options are not supported.
llama_gearkv_ptr llama_gearkv_new(const llama_model& model, const llama_hparams& hparams,
                                  const llama_gearkv_shape& shape,
                                  const llama_memory_i::layer_filter_cb& filter);

// llama_memory_i
void llama_gearkv_clear(llama_gearkv& gear);
bool llama_gearkv_seq_rm(llama_gearkv& gear, llama_seq_id seq, llama_pos p0, llama_pos p1);
void llama_gearkv_seq_cp(llama_gearkv& gear, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);
void llama_gearkv_seq_keep(llama_gearkv& gear, llama_seq_id seq);
void llama_gearkv_seq_add(llama_gearkv& gear, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos shift);
void llama_gearkv_seq_div(llama_gearkv& gear, llama_seq_id seq, llama_pos p0, llama_pos p1, int d);
// The first position that is still there and followed by all others; pos_min is that of the cells.
llama_pos llama_gearkv_pos_min(const llama_gearkv& gear, llama_seq_id seq, llama_pos pos_min);

// All sequences of a stream, or one of them (seq >= 0). They throw std::runtime_error, as io does.
void llama_gearkv_write(llama_gearkv& gear, llama_io_write_i& io, llama_seq_id seq, std::uint32_t stream);
bool llama_gearkv_read(llama_gearkv& gear, llama_io_read_i& io, llama_seq_id seq);

// Before a graph runs: which tokens of the ubatch go to which sequence. False: the ubatch cannot be computed.
bool llama_gearkv_begin(llama_gearkv& gear, const llama_ubatch& ubatch);
// After a graph has run on this thread: whether an operator of it failed. Asking forgets it.
bool llama_gearkv_failed();

// While a graph is built: cpy_k and cpy_v leave the rows of this ubatch here instead of copying them, get_k
// and get_v name them to build_attn_mha, which asks for the operator. Null when the keys are none of these
// (attention without a cache). Throws std::runtime_error when attention is of a kind that is not supported;
// the engine builds such a graph when it makes a context.
ggml_tensor* llama_gearkv_store(llama_gearkv& gear, int il, int layer, int which, ggml_tensor* cur);
ggml_tensor* llama_gearkv_fetch(llama_gearkv& gear, int il, int layer, int which);
struct llama_gearkv_rules {
    float scale, soft_cap, max_bias;
    bool causal;
    bool plain;  // nothing but what is in here: no bias of scores, no values out of keys, no selection of
                 // tokens
};
ggml_tensor* llama_gearkv_attn(ggml_context* ctx, int il, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                               ggml_tensor* sinks, const llama_gearkv_rules& rules);
