// gearkv codec: compress dumped keys and values, and measure what that does to them and to attention.
#include <cmath>
#include <filesystem>
#include <iostream>
#include <optional>

#include "command.hpp"
#include "dense_attention.hpp"
#include "failure.hpp"
#include "npy.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

// [n_tokens, n_heads, dim], contiguous.
struct Tensor {
    std::size_t n_tokens = 0, n_heads = 0, dim = 0;
    std::vector<float> data;
};

// Memory of one block, aligned as blocks are.
struct alignas(64) BlockLine {
    unsigned char bytes[64];
};

struct Compressed {
    Tensor reconstruction;
    BlockBytes bytes;  // of all units
};

struct Measured {
    Compressed key, value;
    double key_error = 0, value_error = 0;
    std::optional<double> output_error;  // with queries only

    std::uint64_t n_bytes() const { return key.bytes.bytes + value.bytes.bytes; }
};

double bits_per_element(std::uint64_t n_bytes, std::size_t n_elements) {
    return 8.0 * static_cast<double>(n_bytes) / static_cast<double>(n_elements);
}

class Codec final : public Command {
  public:
    explicit Codec(CLI::App& parent)
        : Command(parent.add_subcommand("codec", "Compress .npy tensors and measure the error")) {
        options_.kv = {"gear-4"};
        app_->add_option("--k", k_path_, "Keys, .npy of (tokens, heads, d), float32 or float16")->required();
        app_->add_option("--v", v_path_, "Values, the same tokens and heads")->required();
        app_->add_option("--q", q_path_,
                         "Queries (queries, heads, d); heads a multiple of the keys'. The trellis "
                         "presets choose widths by them, those before --last-queries if any");
        app_->add_option("--layer", layer_, "With arrays of (layers, tokens, heads, d): which layer")
            ->check(in_range(0, UINT32_MAX));
        app_->add_option("--last-queries", n_last_, "Attend with the last queries only; 0: all")
            ->check(in_range(0, UINT32_MAX))
            ->capture_default_str();
        app_->add_option("--block", n_block_, "Tokens compressed as one unit; 0: all of them")
            ->check(in_range(0, UINT32_MAX))
            ->capture_default_str();
        app_->add_flag("--causal", causal_,
                       "The last query sees all tokens, the one before it all but one, ...");
        app_->add_option("--scale", scale_, "Of the scores; default 1/sqrt(d)");
        app_->add_option("--out-k", out_k_, "Write the keys as decompressed, float32 .npy");
        app_->add_option("--out-v", out_v_, "Write the values as decompressed, float32 .npy");
        add_kv_option(*app_, options_, true);
        add_machine_options(*app_, options_);
        add_json_option(*app_, options_);
    }

    void run() override {
        const std::vector<NamedSpec> specs = read_specs(options_);
        if (specs.size() > 1 && !(out_k_ + out_v_).empty())
            throw UsageError("--out-k and --out-v take one SPEC");
        for (const NamedSpec& spec : specs) {
            if (spec.spec.auto_bits != 0.0f)
                throw UsageError(
                    spec.text +
                    " chooses its rates from the layers of a cache, expected a SPEC of its own rates");
            if (spec.spec.n_layer_rules > 0)
                throw UsageError(spec.text + " has rules for layers, expected a SPEC of one block");
        }
        Machine machine = open_machine(options_);
        load();
        std::vector<Measured> results;
        for (const NamedSpec& spec : specs)
            results.push_back(measure(spec.spec, machine));
        if (!out_k_.empty()) save(out_k_, results[0].key.reconstruction);
        if (!out_v_.empty()) save(out_v_, results[0].value.reconstruction);
        options_.json ? print_as_json(specs, results, machine) : print_as_text(specs, results, machine);
    }

  private:
    Tensor load_tensor(const std::string& path) const {
        npy::Array array = npy::load(path);
        if (array.type == npy::Type::int32)
            throw Failure(path + ": int32 elements, expected float16 or float32");
        const std::size_t n_dims = layer_ ? 4 : 3;
        if (array.shape.size() != n_dims) {
            throw Failure(
                path + ": shape " + npy::shape_text(array.shape) + ", expected " +
                (layer_ ? "(layers, tokens, heads, d)" : "(tokens, heads, d); --layer picks one of more"));
        }
        for (const std::size_t extent : array.shape) {
            if (extent == 0 || extent > UINT32_MAX) {
                throw Failure(path + ": shape " + npy::shape_text(array.shape) + " is empty or too long");
            }
        }
        Tensor tensor = {array.shape[n_dims - 3], array.shape[n_dims - 2], array.shape[n_dims - 1], {}};
        if (!layer_) {
            tensor.data = std::move(array.floats);
            return tensor;
        }
        if (*layer_ >= array.shape[0]) {
            throw Failure(path + ": no layer " + std::to_string(*layer_) + " of " +
                          std::to_string(array.shape[0]));
        }
        const std::size_t n = tensor.n_tokens * tensor.n_heads * tensor.dim;
        const float* first = array.floats.data() + *layer_ * n;
        tensor.data.assign(first, first + n);
        return tensor;
    }

    void load() {
        key_ = load_tensor(k_path_);
        value_ = load_tensor(v_path_);
        if (key_.n_tokens != value_.n_tokens || key_.n_heads != value_.n_heads) {
            throw Failure("keys and values have different numbers of tokens or heads");
        }
        if (q_path_.empty()) return;
        query_ = load_tensor(q_path_);
        if (query_.dim != key_.dim || query_.n_heads % key_.n_heads != 0) {
            throw Failure(q_path_ + ": expected " + std::to_string(key_.dim) +
                          " channels and a multiple of " + std::to_string(key_.n_heads) + " heads");
        }
        if (n_last_ > query_.n_tokens) throw Failure(q_path_ + ": fewer queries than --last-queries");
        // Those before the last ones choose the widths, where there are any; else all.
        const bool has_others = n_last_ > 0 && n_last_ < query_.n_tokens;
        weigh_keys(has_others ? query_.n_tokens - n_last_ : query_.n_tokens);
        if (n_last_ > 0) {
            const std::size_t n_skipped = (query_.n_tokens - n_last_) * query_.n_heads * query_.dim;
            query_.data.erase(query_.data.begin(),
                              query_.data.begin() + static_cast<std::ptrdiff_t>(n_skipped));
            query_.n_tokens = n_last_;
        }
        if (causal_ && query_.n_tokens > key_.n_tokens) throw Failure("more causal queries than tokens");
        expected_ = attend(key_, value_);
    }

    // By the mean square of the first n queries in each channel.
    void weigh_keys(std::size_t n) {
        const std::size_t n_shared = query_.n_heads / key_.n_heads;
        std::vector<double> sum(key_.n_heads * key_.dim);
        for (std::size_t i = 0; i < n * query_.n_heads; ++i) {
            const std::size_t head = i % query_.n_heads / n_shared;
            for (std::size_t c = 0; c < key_.dim; ++c) {
                const double x = query_.data[i * key_.dim + c];
                sum[head * key_.dim + c] += x * x;
            }
        }
        for (const double square : sum)
            key_weights_.push_back(static_cast<float>(square / static_cast<double>(n * n_shared)));
    }

    std::vector<double> attend(const Tensor& key, const Tensor& value) const {
        AttentionShape shape;
        shape.n_queries = 1;
        shape.n_heads = query_.n_heads;
        shape.n_kv_heads = key.n_heads;
        shape.key_dim = key.dim;
        shape.value_dim = value.dim;
        shape.scale = scale_.value_or(1.0 / std::sqrt(static_cast<double>(key.dim)));
        std::vector<double> out;
        out.reserve(query_.n_tokens * query_.n_heads * value.dim);
        for (std::size_t i = 0; i < query_.n_tokens; ++i) {
            check_interrupt();
            shape.n_tokens = causal_ ? key.n_tokens - (query_.n_tokens - 1 - i) : key.n_tokens;
            const float* query = query_.data.data() + i * query_.n_heads * query_.dim;
            const std::vector<double> row = attend_dense(query, key.data.data(), value.data.data(), shape);
            out.insert(out.end(), row.begin(), row.end());
        }
        return out;
    }

    Measured measure(const KvSpec& spec, Machine& machine) const {
        Measured result;
        result.key = compress(key_, TensorKind::key, spec.key, machine);
        result.value = compress(value_, TensorKind::value, spec.value, machine);
        result.key_error = relative_error(result.key.reconstruction.data, key_.data);
        result.value_error = relative_error(result.value.reconstruction.data, value_.data);
        if (!q_path_.empty()) {
            result.output_error =
                relative_error(attend(result.key.reconstruction, result.value.reconstruction), expected_);
        }
        return result;
    }

    Compressed compress(const Tensor& tensor, TensorKind kind, const TensorSpec& spec,
                        Machine& machine) const {
        Compressed compressed = {tensor, {}};
        const std::size_t row = tensor.n_heads * tensor.dim;
        const std::size_t unit = n_block_ == 0 ? tensor.n_tokens : n_block_;
        BlockOptions options;
        options.spec = spec;
        options.rank = spec.rank_prompt;
        options.seed = options_.seed;
        options.level = machine.level;
        if (kind == TensorKind::key && !key_weights_.empty()) options.key_weights = key_weights_.data();
        for (std::size_t first = 0; first < tensor.n_tokens; first += unit) {
            check_interrupt();
            const std::size_t n_tokens = std::min(unit, tensor.n_tokens - first);
            const BlockShape shape = {kind, static_cast<std::uint32_t>(n_tokens),
                                      static_cast<std::uint32_t>(tensor.n_heads),
                                      static_cast<std::uint32_t>(tensor.dim)};
            BlockBytes bytes;
            check(block_bytes(shape, options, &bytes));
            std::vector<BlockLine> block((bytes.bytes + sizeof(BlockLine) - 1) / sizeof(BlockLine));
            const Rows rows = {tensor.data.data() + first * row, row, tensor.dim};
            check(compress_block(block.data(), bytes.bytes, rows, shape, options, *machine.executor));
            float* out = compressed.reconstruction.data.data() + first * row;
            check(decompress_block(out, n_tokens * row, block.data(), bytes.bytes));
            compressed.bytes += bytes;
        }
        return compressed;
    }

    // Beside its name first, so that a file is whole or not there; devices and pipes take it as it comes.
    static void save(const std::string& path, const Tensor& tensor) {
        namespace fs = std::filesystem;
        const npy::Array array = {
            npy::Type::float32, {tensor.n_tokens, tensor.n_heads, tensor.dim}, tensor.data, {}};
        std::error_code error;
        const fs::file_status there = fs::status(path, error);
        if (fs::exists(there) && !fs::is_regular_file(there)) return npy::save(path, array);
        const fs::path target = fs::exists(there) ? fs::canonical(path, error) : fs::path(path);
        const std::string part = target.string() + ".part";
        npy::save(part, array);
        fs::rename(part, target, error);
        if (!error) return;
        const std::string message = error.message();
        fs::remove(part, error);
        throw Failure(path + ": " + message);
    }

    std::size_t n_elements() const { return key_.data.size() + value_.data.size(); }

    void print_as_json(const std::vector<NamedSpec>& specs, const std::vector<Measured>& results,
                       const Machine& machine) const {
        Json json = start_json("codec", &machine);
        json["tokens"] = key_.n_tokens;
        json["heads"] = key_.n_heads;
        json["key_dim"] = key_.dim;
        json["value_dim"] = value_.dim;
        json["block"] = n_block_ == 0 ? key_.n_tokens : n_block_;
        for (std::size_t i = 0; i < specs.size(); ++i) {
            const Measured& result = results[i];
            Json row = {
                {"kv", specs[i].canonical},
                {"key_error", result.key_error},
                {"value_error", result.value_error},
                {"output_error", nullptr},
                {"bits_per_element", bits_per_element(result.n_bytes(), n_elements())},
                {"key_bits_per_element", bits_per_element(result.key.bytes.bytes, key_.data.size())},
                {"value_bits_per_element", bits_per_element(result.value.bytes.bytes, value_.data.size())},
                {"keys", to_json(result.key.bytes)},
                {"values", to_json(result.value.bytes)}};
            if (result.output_error) row["output_error"] = *result.output_error;
            json["results"].push_back(row);
        }
        print_json(json);
    }

    void print_as_text(const std::vector<NamedSpec>& specs, const std::vector<Measured>& results,
                       const Machine& machine) const {
        std::cout << key_.n_tokens << " tokens, " << key_.n_heads << " KV heads of " << key_.dim << " and "
                  << value_.dim << " channels, level " << level_name(machine.level) << "\n\n";
        Table table({"kv", "K error", "V error", "output error", "bits/element", "codes", "scales",
                     "low rank", "outliers", "other", "bytes"});
        for (std::size_t i = 0; i < specs.size(); ++i) {
            const Measured& result = results[i];
            BlockBytes bytes = result.key.bytes;
            bytes += result.value.bytes;
            table.add({specs[i].text, fixed(result.key_error, 4), fixed(result.value_error, 4),
                       result.output_error ? fixed(*result.output_error, 4) : "-",
                       fixed(bits_per_element(bytes.bytes, n_elements()), 3), grouped(bytes.codes),
                       grouped(bytes.scales), grouped(bytes.low_rank), grouped(bytes.outliers),
                       grouped(bytes.header + bytes.padding), grouped(bytes.bytes)});
        }
        table.print(std::cout);
    }

    Options options_;
    std::string k_path_, v_path_, q_path_, out_k_, out_v_;
    std::optional<std::size_t> layer_;
    std::optional<double> scale_;
    std::size_t n_block_ = 0, n_last_ = 0;
    bool causal_ = false;
    Tensor key_, value_, query_;
    std::vector<float> key_weights_;  // [heads, d], with queries
    std::vector<double> expected_;    // attention output over the uncompressed tensors
};

}  // namespace

std::unique_ptr<Command> add_codec(CLI::App& app) {
    return std::make_unique<Codec>(app);
}

}  // namespace gearkv::tool
