// Attention output error and KL divergence of attention weights, in double precision.
#pragma once

#include "formats.hpp"

namespace gearkv::quality {

struct Score {
    double bits_per_element = 0;
    double key_error = 0;  // relative Frobenius
    double value_error = 0;
    double output_error = 0;  // relative Frobenius of softmax(q K^T) V over all queries
    double weight_kl = 0;     // mean over queries and heads, in nats
};

// Uncompressed attention of every layer, computed once.
class Exact {
  public:
    explicit Exact(const Dataset& data);
    // Mean over layers.
    Score measure(const Format& format) const;

  private:
    struct Attended {
        std::vector<double> weights;  // [query, head, token]
        std::vector<double> out;      // [query, head, value_dim]
    };
    static Attended attend(const Layer& layer, const std::vector<float>& keys,
                           const std::vector<float>& values);

    const Dataset& data_;
    std::vector<Attended> exact_;
};

}  // namespace gearkv::quality
