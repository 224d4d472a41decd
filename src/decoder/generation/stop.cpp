#include "gearkv/stop.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "decoder/gguf/guarded.hpp"

namespace gearkv {
namespace {

constexpr std::size_t max_stop_bytes = 1u << 20;

// A text that some stop string begins with. Numbered by length, so that the children of a node stand side by
// side, ascending by their last byte.
struct Node {
    std::uint32_t first_child = 0;
    std::uint32_t n_children = 0;
    std::uint32_t length = 0;
    std::uint32_t fallback = 0;  // the longest end of this text that is a node too
    int stop = -1;               // the longest stop string that this text ends with
    unsigned char last = 0;
};

class StopTree {
  public:
    // May throw std::bad_alloc.
    explicit StopTree(const std::vector<std::string>& stops) {
        std::vector<std::size_t> order(stops.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return stops[a] < stops[b]; });
        // Of `order`, the stop strings that begin with the text of each node.
        struct Range {
            std::size_t first, end;
        };
        std::vector<Range> ranges = {{0, order.size()}};
        nodes_.emplace_back();
        for (std::uint32_t at = 0; at < nodes_.size(); at++) {
            auto [first, end] = ranges[at];
            const std::uint32_t length = nodes_[at].length;
            nodes_[at].stop = nodes_[nodes_[at].fallback].stop;
            if (first < end && length > 0 && stops[order[first]].size() == length)
                nodes_[at].stop = static_cast<int>(order[first]);
            while (first < end && stops[order[first]].size() == length)
                first += 1;
            nodes_[at].first_child = static_cast<std::uint32_t>(nodes_.size());
            for (std::size_t next; first < end; first = next) {
                Node child;
                child.last = static_cast<unsigned char>(stops[order[first]][length]);
                child.length = length + 1;
                if (at > 0) child.fallback = step(nodes_[at].fallback, child.last);
                for (next = first; next < end;) {
                    if (static_cast<unsigned char>(stops[order[next]][length]) != child.last) break;
                    next += 1;
                }
                nodes_.push_back(child);
                ranges.push_back({first, next});
                nodes_[at].n_children += 1;
            }
        }
    }

    // The longest end of a node's text and one more byte that is a node.
    std::uint32_t step(std::uint32_t at, unsigned char byte) const noexcept {
        for (;; at = nodes_[at].fallback) {
            const Node* first = nodes_.data() + nodes_[at].first_child;
            const Node* end = first + nodes_[at].n_children;
            const Node* child = std::lower_bound(
                first, end, byte, [](const Node& node, unsigned char b) { return node.last < b; });
            if (child != end && child->last == byte) return static_cast<std::uint32_t>(child - nodes_.data());
            if (at == 0) return 0;
        }
    }

    const Node& operator[](std::uint32_t at) const noexcept { return nodes_[at]; }

  private:
    std::vector<Node> nodes_;
};

class TreeMatcher final : public StopMatcher {
  public:
    explicit TreeMatcher(const std::vector<std::string>& stops) : tree_(stops) {
        for (const std::string& stop : stops) {
            lengths_.push_back(stop.size());
        }
    }

    Status feed(std::string_view bytes, std::string* text) noexcept override {
        if (text == nullptr) return Status::error(Code::invalid_argument, "null text");
        if (stop_ >= 0) return {};
        return guarded([&] {
            // All that can fail comes first.
            text->reserve(text->size() + held().size() + bytes.size());
            pending_.append(bytes);
            std::size_t n_seen = pending_.size() - bytes.size();
            while (n_seen < pending_.size() && stop_ < 0) {
                at_ = tree_.step(at_, static_cast<unsigned char>(pending_[n_seen++]));
                stop_ = tree_[at_].stop;
            }
            const std::size_t n_held =
                stop_ < 0 ? tree_[at_].length : lengths_[static_cast<std::size_t>(stop_)];
            text->append(pending_, n_released_, n_seen - n_held - n_released_);
            n_released_ = n_seen - n_held;
            if (stop_ >= 0) drop();
            // Moving what is left costs no more than what was released before.
            if (n_released_ > pending_.size() / 2) {
                pending_.erase(0, n_released_);
                n_released_ = 0;
            }
            return Status();
        });
    }

    Status finish(std::string* text) noexcept override {
        if (text == nullptr) return Status::error(Code::invalid_argument, "null text");
        return guarded([&] {
            text->append(held());
            drop();
            return Status();
        });
    }

    int stopped_by() const noexcept override { return stop_; }
    std::string_view held() const noexcept override { return std::string_view(pending_).substr(n_released_); }
    void reset() noexcept override {
        drop();
        stop_ = -1;
    }

  private:
    void drop() noexcept {
        pending_.clear();
        n_released_ = 0;
        at_ = 0;
    }

    StopTree tree_;
    std::vector<std::size_t> lengths_;
    std::string pending_;  // released bytes, then those held back, which are the text of a node
    std::size_t n_released_ = 0;
    std::uint32_t at_ = 0;
    int stop_ = -1;
};

}  // namespace

Status StopMatcher::create(const std::vector<std::string>& stops,
                           std::unique_ptr<StopMatcher>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    std::size_t n_bytes = 0;
    for (const std::string& stop : stops) {
        if (stop.empty()) return Status::error(Code::invalid_argument, "an empty stop string");
        n_bytes += stop.size();
    }
    if (n_bytes > max_stop_bytes) {
        return Status::error(Code::invalid_argument, "stop strings of %zu bytes, expected at most %zu",
                             n_bytes, max_stop_bytes);
    }
    return guarded([&] {
        *out = std::make_unique<TreeMatcher>(stops);
        return Status();
    });
}

}  // namespace gearkv
