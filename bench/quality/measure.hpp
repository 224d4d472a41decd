// Attention output error and KL divergence of attention weights; softmax in double precision.
#pragma once

#include "formats.hpp"

namespace gearkv::quality {

struct Score {
    double bits_per_element = 0;
    double key_error = 0;  // relative Frobenius
    double value_error = 0;
    double output_error = 0;  // relative Frobenius of softmax(q K^T) V over all queries
    double weight_kl = 0;     // mean over queries and heads, in nats
    double recent_error = 0;  // output_error where every query sees its last n_recent tokens as they are
};

// Uncompressed attention of every layer, computed once.
class Exact {
  public:
    Exact(const Dataset& data, std::size_t n_recent);
    // Mean over layers.
    Score measure(const Format& format) const;

  private:
    struct Attended {
        std::vector<double> scores;   // [query, head, token]; of tokens that are not seen nothing
        std::vector<double> weights;  // the same
        std::vector<float> out;       // [query, head, value_dim]
    };
    // Of one query.
    struct Seen {
        std::size_t begin, end;
    };
    static Seen seen_by(const Layer& layer, std::size_t query);
    static void score(const Layer& layer, const std::vector<float>& keys, Attended* attended);
    static void mix(const Layer& layer, const std::vector<float>& values, Attended* attended);
    // The same, the last n_recent tokens of every query with these scores and the layer's own values.
    void mix_recent(const Layer& layer, const Attended& exact, const std::vector<float>& values,
                    Attended* attended) const;

    const Dataset& data_;
    std::size_t n_recent_;
    std::vector<Attended> exact_;
};

}  // namespace gearkv::quality
