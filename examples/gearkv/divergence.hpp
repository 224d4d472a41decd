// How far the predictions of one cache are from those of another: sums over tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gearkv/cache.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv::tool {

// What logits predict.
class Prediction {
  public:
    void set(const float* logits, std::size_t n);
    const std::vector<double>& shares() const { return shares_; }  // their softmax
    const std::vector<double>& logs() const { return logs_; }      // natural logarithms of it
    // Of the tokens in their order, the first of the likeliest.
    std::size_t likeliest() const { return likeliest_; }

  private:
    std::vector<double> shares_, logs_;
    std::size_t likeliest_ = 0;
};

// KL(exact || own) in nats, of every token, and how often the likeliest token is the same.
class Divergence {
  public:
    void add(const Prediction& exact, const Prediction& own);

    const std::vector<double>& all() const { return all_; }
    double mean() const { return mean_of(0, all_.size()); }
    double mean_of(std::size_t begin, std::size_t end) const;  // of the tokens from begin to end
    // The smallest that a share of the tokens does not exceed.
    double at(double share) const;
    // The share of the tokens whose likeliest successor is the same.
    double agreement() const { return agreement_of(0, all_.size()); }
    double agreement_of(std::size_t begin, std::size_t end) const;

  private:
    std::vector<double> all_;
    std::vector<bool> agrees_;
};

// Bytes that caches hold beside what the same keys and values take in fp16.
class Holdings {
  public:
    void add(const Cache& cache);
    double bits_per_element() const { return bits_ / weight_; }
    double fp16_percent() const { return 50 * bytes_ / elements_; }
    // The same of blocks and of first tokens that stay as they came, without those that fill no block yet;
    // with them, where there is nothing else.
    double fp16_percent_of_blocks() const;

  private:
    double bits_ = 0, weight_ = 0;  // bits per element times tokens, and tokens
    double bytes_ = 0, elements_ = 0;
    double tail_bytes_ = 0, tail_elements_ = 0;
};

}  // namespace gearkv::tool
