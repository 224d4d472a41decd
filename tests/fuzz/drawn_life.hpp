// The configuration of a cache whose life a fuzzer lives.
#pragma once

#include <memory>
#include <string>

#include "fuzz/choices.hpp"

namespace gearkv::fuzz {

constexpr const char* specs[] = {"f16",
                                 "f32",
                                 "q8",
                                 "q8:recent=20,sinks=3",
                                 "gear-4",
                                 "gear-2",
                                 "gear-3:recent=33,sinks=7",
                                 "auto:3",
                                 "trellis-2",
                                 "kivi-4",
                                 "kivi-2:g=32,nb=32",
                                 "kcvt-4:nb=16",
                                 "token-3:nb=24",
                                 "paper:gear-4:nb=64",
                                 "paper:gear-2:s=0.1,nb=32,g=32",
                                 "gear-kcvt-4:nb=48",
                                 "k=gear-4;v=kivi-4:nb=128",
                                 "k=f16;v=q8",
                                 "gear-2;edge-1=q8"};
constexpr const char* latent_specs[] = {"f32",
                                        "f16",
                                        "gear-4",
                                        "gear-1",
                                        "gear-3:recent=33,sinks=7",
                                        "trellis-2",
                                        "k=f16;v=gear-2",
                                        "k=gear-3;v=f16",
                                        "k=kivi-4:nb=128;v=gear-3",
                                        "gear-2;edge-1=gear-4"};

// All of it comes from the choices, which go on with the life.
class DrawnLife {
  protected:
    DrawnLife(const std::uint8_t* data, std::size_t n)
        : choices_(data, n), executor_(choices_.below(1 << 30)) {
        spec_ = choices_.of(specs);
        constexpr std::uint32_t dims[] = {8, 16, 24, 32, 64, 72, 128};
        const auto any_shape = [&] {
            const std::uint32_t n_heads = 1 + choices_.below(3), key_dim = choices_.of(dims);
            return LayerDims{n_heads, key_dim, choices_.of(dims)};
        };
        config_.n_layers = 1 + choices_.below(most_layers);
        std::fill_n(dims_, config_.n_layers, any_shape());
        if (config_.n_layers > 1 && choices_.one_in(2)) {  // they differ, and may lack keys
            kept_ = choices_.below(config_.n_layers);
            for (std::uint32_t i = 0; i < config_.n_layers; ++i)
                dims_[i] = i != kept_ && choices_.one_in(3) ? LayerDims{} : any_shape();
            config_.dims = dims_;
        } else {
            config_.n_kv_heads = dims_[0].n_kv_heads;
            config_.key_dim = dims_[0].key_dim;
            config_.value_dim = dims_[0].value_dim;
        }
        config_.max_tokens = 100 + choices_.below(900);
        (void)parse_spec(spec_.c_str(), &config_.spec).ok();
        constexpr std::uint32_t spreads[] = {0, 1, 3, 16, 1000};
        config_.spread_tokens = choices_.of(spreads);
        config_.block_tokens = choices_.one_in(3) ? 1 + choices_.below(300) : 0;
        config_.rollback_tokens = choices_.one_in(3) ? choices_.below(2 * config_.spec.buffer_tokens + 1) : 0;
        config_.error_every = choices_.one_in(4) ? 1 : 0;
        config_.seed = choices_.below(1000);
        ropes_.resize(config_.n_layers);
        if (choices_.one_in(2)) {
            for (double& f : frequencies_)
                f = 3.0 * std::exp(-0.3 * static_cast<double>(&f - frequencies_));
            std::uint32_t least_dim = 1024;
            for (std::uint32_t i = 0; i < config_.n_layers; ++i) {
                if (dims_[i].has_keys()) least_dim = std::min(least_dim, dims_[i].key_dim);
            }
            config_.rope = {frequencies_, 1 + choices_.below(least_dim / 2), choices_.one_in(2)};
            ropes_.assign(config_.n_layers, config_.rope);
            is_told_ = choices_.one_in(2);
            if (is_told_) {  // the layers differ, and the configuration need not know
                for (std::uint32_t i = 1; i < config_.n_layers; ++i)
                    ropes_[i].n_pairs = choices_.below(dims_[i].key_dim / 2 + 1);
                if (choices_.one_in(2)) config_.rope = {};
            }
        }
        if (choices_.one_in(4)) {
            for (std::uint32_t& window : windows_)
                window = choices_.one_in(3) ? 0 : 1 + choices_.below(200);
            config_.windows = windows_;
        }
        if (choices_.one_in(2)) {
            EXPECT(Workspace::create(default_allocator(), &workspace_).ok(), "no workspace");
            config_.workspace = workspace_.get();
        }
        Choices aside = choices_.aside();
        if (aside.one_in(5)) config_.soft_bytes = 5000 + aside.below(aside.one_in(2) ? 100000 : 2000000);
        if (aside.one_in(6)) {
            config_.latent = true;
            spec_ = aside.of(latent_specs);
            (void)parse_spec(spec_.c_str(), &config_.spec).ok();
        }
        if (std::getenv("GEARKV_LEVEL") == nullptr) {
            constexpr Level levels[] = {Level::scalar, Level::avx2, Level::avxvnni,
                                        Level::avx512, Level::neon, Level::dotprod};
            const Level level = choices_.of(levels);
            if (level_available(level)) config_.level = level;
        }
    }
    // The configuration points into it.
    DrawnLife(const DrawnLife&) = delete;
    DrawnLife& operator=(const DrawnLife&) = delete;

    // With keys.
    std::uint32_t any_layer() {
        const std::uint32_t layer = choices_.below(config_.n_layers);
        return dims_[layer].has_keys() ? layer : kept_;
    }
    std::size_t key_row(std::uint32_t layer) const {
        return std::size_t{dims_[layer].n_kv_heads} * dims_[layer].key_dim;
    }
    std::size_t value_row(std::uint32_t layer) const {
        return std::size_t{dims_[layer].n_kv_heads} * dims_[layer].value_dim;
    }

    Choices choices_;
    StrangeExecutor executor_;
    std::string spec_;
    double frequencies_[64] = {};
    std::vector<RopeConfig> ropes_;  // of the layers
    bool is_told_ = false;           // removals are told them
    static constexpr std::uint32_t most_layers = 3;
    std::uint32_t windows_[most_layers] = {};
    LayerDims dims_[most_layers] = {};
    std::uint32_t kept_ = 0;  // a layer with keys
    CacheConfig config_;
    std::unique_ptr<Workspace> workspace_;  // outlives the caches
};

}  // namespace gearkv::fuzz
