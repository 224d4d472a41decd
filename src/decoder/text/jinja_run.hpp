// Runs the tree of a template: nothing in it reaches out of the run, which ends after a given number of
// steps.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "decoder/text/jinja_value.hpp"
#include "gearkv/chat.hpp"

namespace gearkv {

struct JinjaArguments {
    std::vector<JinjaValue> values;
    std::vector<std::pair<std::string, JinjaValue>> named;

    std::size_t n() const { return values.size() + named.size(); }
    // The argument at a position or of a keyword, or null.
    const JinjaValue* find(std::size_t at, std::string_view keyword) const;
};

// Good for one run. All of it may throw JinjaError, std::bad_alloc.
class JinjaRun {
  public:
    // One step is one node of the tree, or one byte of a text that is made.
    JinjaRun(const ChatDate& date, std::size_t max_steps) : date_(date), steps_left_(max_steps) {}
    JinjaRun(const JinjaRun&) = delete;
    JinjaRun& operator=(const JinjaRun&) = delete;

    JinjaValue text(MarkedText text);
    JinjaValue list(JinjaList list);
    JinjaValue dict(JinjaDict dict);
    void set(const std::string& name, JinjaValue value) { global_.values[name] = std::move(value); }

    MarkedText run(const JinjaNode& tree);

  private:
    struct Scope {
        std::map<std::string, JinjaValue> values;
        Scope* parent = nullptr;
    };
    enum class Flow { on, stop, skip };
    class Deeper;

    void charge(std::size_t n);

    // Statements, in jinja_run.cpp.
    Flow execute(const JinjaNode& node, Scope& scope, MarkedText* out);
    Flow execute_block(const JinjaNode& node, Scope& scope, MarkedText* out);
    Flow execute_condition(const JinjaNode& node, Scope& scope, MarkedText* out);
    Flow execute_loop(const JinjaNode& node, Scope& scope, MarkedText* out);
    void execute_set(const JinjaNode& node, Scope& scope);
    void assign(const std::vector<std::string>& names, const JinjaValue& value, Scope& scope);

    // Expressions, there too.
    JinjaValue evaluate(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_name(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_list(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_dict(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_unary(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_binary(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_comparison(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_item(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_slice(const JinjaNode& node, Scope& scope);
    JinjaValue evaluate_call(const JinjaNode& node, Scope& scope);
    JinjaArguments arguments(const JinjaNode& node, Scope& scope);
    JinjaValue call_macro(const JinjaNode& macro, const JinjaArguments& given);

    // Operators, in jinja_operators.cpp.
    JinjaValue attribute(const JinjaValue& object, const std::string& name);
    JinjaValue item(const JinjaValue& object, const JinjaValue& index);
    JinjaValue add(const JinjaValue& a, const JinjaValue& b);
    JinjaValue calculate(const std::string& sign, const JinjaValue& a, const JinjaValue& b);
    bool compare(const std::string& sign, const JinjaValue& a, const JinjaValue& b);
    bool equal(const JinjaValue& a, const JinjaValue& b, int depth = 0);
    bool contains(const JinjaValue& whole, const JinjaValue& part);
    // What a loop goes through: the items of a list, the keys of a dictionary, the characters of a text.
    JinjaList items_of(const JinjaValue& value);
    MarkedText printed(const JinjaValue& value);

    // What engines bring along, in jinja_calls.cpp.
    JinjaValue call_function(const std::string& name, const JinjaArguments& given);
    JinjaValue text_method(const MarkedText& text, const std::string& name, const JinjaArguments& given);
    JinjaValue dict_method(const JinjaDict& dict, const std::string& name, const JinjaArguments& given);
    JinjaValue filter(const std::string& name, const JinjaValue& value, const JinjaArguments& given);
    JinjaValue text_filter(const std::string& name, const JinjaValue& value, const JinjaArguments& given);
    JinjaValue select(const std::string& name, const JinjaValue& value, const JinjaArguments& given);
    JinjaValue split(const MarkedText& text, const JinjaArguments& given);
    bool test(const std::string& name, const JinjaValue& value, const JinjaArguments& given);

    ChatDate date_;
    std::size_t steps_left_;
    int depth_ = 0;
    Scope global_;
    // Addresses stay while these grow.
    std::deque<JinjaList> lists_;
    std::deque<JinjaDict> dicts_;
};

}  // namespace gearkv
