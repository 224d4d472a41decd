// Statements and expressions of a template. Where Python or Jinja would stop with an error, so does this.
#include "decoder/text/jinja_run.hpp"

#include <algorithm>

namespace gearkv {

using Kind = JinjaValue::Kind;
using NodeKind = JinjaNode::Kind;

namespace {

constexpr int max_depth = 300;  // of trees and macros within each other

}  // namespace

// One level deeper, as long as it lasts.
class JinjaRun::Deeper {
  public:
    explicit Deeper(JinjaRun& run) : run_(run) {
        if (++run_.depth_ > max_depth) throw JinjaError{"run too deeply"};
    }
    ~Deeper() { run_.depth_--; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

  private:
    JinjaRun& run_;
};

void JinjaRun::charge(std::size_t n) {
    if (n > steps_left_) throw JinjaError{"it takes too long"};
    steps_left_ -= n;
}

JinjaValue JinjaRun::text(MarkedText text) {
    charge(text.bytes.size());
    JinjaValue value;
    value.kind = Kind::string;
    value.text = std::make_shared<const MarkedText>(std::move(text));
    return value;
}

JinjaValue JinjaRun::list(JinjaList list) {
    charge(8 * list.size() + 8);
    lists_.push_back(std::move(list));
    JinjaValue value;
    value.kind = Kind::list;
    value.list = &lists_.back();
    return value;
}

JinjaValue JinjaRun::dict(JinjaDict dict) {
    charge(8 * dict.size() + 8);
    dicts_.push_back(std::move(dict));
    JinjaValue value;
    value.kind = Kind::dict;
    value.dict = &dicts_.back();
    return value;
}

MarkedText JinjaRun::run(const JinjaNode& tree) {
    MarkedText out;
    if (execute(tree, global_, &out) != Flow::on) throw JinjaError{"a loop's word outside of loops"};
    return out;
}

JinjaRun::Flow JinjaRun::execute(const JinjaNode& node, Scope& scope, MarkedText* out) {
    const Deeper deeper(*this);
    charge(1);
    switch (node.kind) {
        case NodeKind::block:
            return execute_block(node, scope, out);
        case NodeKind::condition:
            return execute_condition(node, scope, out);
        case NodeKind::loop:
            return execute_loop(node, scope, out);
        case NodeKind::stop:
            return Flow::stop;
        case NodeKind::skip:
            return Flow::skip;
        case NodeKind::text:
            charge(node.text.size());
            out->append({node.text, 0});
            return Flow::on;
        case NodeKind::output: {
            const MarkedText text = printed(evaluate(*node.nodes[0], scope));
            charge(text.bytes.size());
            out->append(text);
            return Flow::on;
        }
        case NodeKind::macro: {
            // It sees what the whole template sees, and nothing of the loop it might stand in.
            JinjaValue& macro = global_.values[node.text];
            if (&scope != &global_) throw JinjaError{"a macro within a loop"};
            macro = {};
            macro.kind = Kind::macro;
            macro.macro = &node;
            return Flow::on;
        }
        default:
            execute_set(node, scope);
            return Flow::on;
    }
}

JinjaRun::Flow JinjaRun::execute_block(const JinjaNode& node, Scope& scope, MarkedText* out) {
    for (const JinjaPointer& statement : node.nodes) {
        const Flow flow = execute(*statement, scope, out);
        if (flow != Flow::on) return flow;
    }
    return Flow::on;
}

JinjaRun::Flow JinjaRun::execute_condition(const JinjaNode& node, Scope& scope, MarkedText* out) {
    std::size_t i = 0;
    for (; i + 1 < node.nodes.size(); i += 2) {
        if (is_true(evaluate(*node.nodes[i], scope))) return execute(*node.nodes[i + 1], scope, out);
    }
    return i < node.nodes.size() ? execute(*node.nodes[i], scope, out) : Flow::on;
}

JinjaRun::Flow JinjaRun::execute_loop(const JinjaNode& node, Scope& scope, MarkedText* out) {
    JinjaList items = items_of(evaluate(*node.nodes[0], scope));
    if (node.nodes[1] != nullptr) {
        JinjaList kept;
        for (const JinjaValue& item : items) {
            Scope inner;
            inner.parent = &scope;
            assign(node.names, item, inner);
            if (is_true(evaluate(*node.nodes[1], inner))) kept.push_back(item);
        }
        items = std::move(kept);
    }
    const auto n = static_cast<std::int64_t>(items.size());
    for (std::int64_t i = 0; i < n; i++) {
        const auto at = static_cast<std::size_t>(i);
        const auto number = [](std::int64_t value) { return JinjaValue::integer(value); };
        Scope inner;
        inner.parent = &scope;
        inner.values["loop"] = dict({
            {"index", number(i + 1)},
            {"index0", number(i)},
            {"first", JinjaValue::boolean(i == 0)},
            {"last", JinjaValue::boolean(i + 1 == n)},
            {"length", number(n)},
            {"revindex", number(n - i)},
            {"revindex0", number(n - i - 1)},
            {"previtem", i > 0 ? items[at - 1] : JinjaValue::undefined("previtem")},
            {"nextitem", i + 1 < n ? items[at + 1] : JinjaValue::undefined("nextitem")},
        });
        assign(node.names, items[at], inner);
        if (execute(*node.nodes[2], inner, out) == Flow::stop) break;
    }
    if (n == 0 && node.nodes[3] != nullptr) return execute(*node.nodes[3], scope, out);
    return Flow::on;
}

void JinjaRun::execute_set(const JinjaNode& node, Scope& scope) {
    if (node.kind == NodeKind::set_block) {
        MarkedText printed;
        if (execute(*node.nodes[0], scope, &printed) != Flow::on)
            throw JinjaError{"a loop's word within a set"};
        scope.values[node.names[0]] = text(std::move(printed));
        return;
    }
    const JinjaValue value = evaluate(*node.nodes[0], scope);
    if (node.kind == NodeKind::set) {
        assign(node.names, value, scope);
        return;
    }
    for (Scope* where = &scope; where != nullptr; where = where->parent) {
        const auto found = where->values.find(node.names[0]);
        if (found == where->values.end()) continue;
        if (!found->second.is(Kind::space)) break;
        for (auto& [name, part] : *found->second.dict) {
            if (name != node.names[1]) continue;
            part = value;
            return;
        }
        charge(8);
        found->second.dict->emplace_back(node.names[1], value);
        return;
    }
    throw JinjaError{"'" + node.names[0] + "' is no namespace"};
}

void JinjaRun::assign(const std::vector<std::string>& names, const JinjaValue& value, Scope& scope) {
    if (names.size() == 1) {
        scope.values[names[0]] = value;
        return;
    }
    if (!value.is(Kind::list) || value.list->size() != names.size())
        throw JinjaError{"a list of another length than its names"};
    for (std::size_t i = 0; i < names.size(); i++) {
        scope.values[names[i]] = (*value.list)[i];
    }
}

JinjaValue JinjaRun::evaluate(const JinjaNode& node, Scope& scope) {
    const Deeper deeper(*this);
    charge(1);
    switch (node.kind) {
        case NodeKind::string:
            return text({node.text, 0});
        case NodeKind::integer:
            return JinjaValue::integer(node.number);
        case NodeKind::name:
            return evaluate_name(node, scope);
        case NodeKind::list:
            return evaluate_list(node, scope);
        case NodeKind::dict:
            return evaluate_dict(node, scope);
        case NodeKind::unary:
            return evaluate_unary(node, scope);
        case NodeKind::binary:
            return evaluate_binary(node, scope);
        case NodeKind::comparison:
            return evaluate_comparison(node, scope);
        case NodeKind::conditional:
            if (is_true(evaluate(*node.nodes[1], scope))) return evaluate(*node.nodes[0], scope);
            if (node.nodes[2] != nullptr) return evaluate(*node.nodes[2], scope);
            return JinjaValue::undefined("the other value");
        case NodeKind::attribute:
            return attribute(evaluate(*node.nodes[0], scope), node.text);
        case NodeKind::item:
            return evaluate_item(node, scope);
        case NodeKind::slice:
            return evaluate_slice(node, scope);
        case NodeKind::call:
            return evaluate_call(node, scope);
        case NodeKind::filter: {
            const JinjaValue value = evaluate(*node.nodes[0], scope);
            return filter(node.text, value, arguments(node, scope));
        }
        case NodeKind::test: {
            const JinjaValue value = evaluate(*node.nodes[0], scope);
            return JinjaValue::boolean(test(node.text, value, arguments(node, scope)));
        }
        default:
            throw JinjaError{"a statement as an expression"};
    }
}

JinjaValue JinjaRun::evaluate_name(const JinjaNode& node, Scope& scope) {
    const std::string& name = node.text;
    if (name == "true" || name == "True") return JinjaValue::boolean(true);
    if (name == "false" || name == "False") return JinjaValue::boolean(false);
    if (name == "none" || name == "None") return JinjaValue::none();
    for (Scope* where = &scope; where != nullptr; where = where->parent) {
        const auto found = where->values.find(name);
        if (found != where->values.end()) return found->second;
    }
    for (const char* known : {"namespace", "range", "dict", "raise_exception", "strftime_now"}) {
        if (name == known) return JinjaValue::function(name);
    }
    for (const char* known : {"joiner", "cycler", "lipsum"}) {
        if (name == known) throw JinjaError{"the function '" + name + "'"};
    }
    return JinjaValue::undefined(name);
}

JinjaValue JinjaRun::evaluate_list(const JinjaNode& node, Scope& scope) {
    JinjaList values;
    for (const JinjaPointer& value : node.nodes) {
        values.push_back(evaluate(*value, scope));
    }
    return list(std::move(values));
}

JinjaValue JinjaRun::evaluate_dict(const JinjaNode& node, Scope& scope) {
    JinjaDict parts;
    for (std::size_t i = 0; i + 1 < node.nodes.size(); i += 2) {
        const JinjaValue key = evaluate(*node.nodes[i], scope);
        JinjaValue value = evaluate(*node.nodes[i + 1], scope);
        if (!key.is(Kind::string)) throw JinjaError{"a dictionary's key that is no text"};
        const auto known = std::find_if(parts.begin(), parts.end(),
                                        [&](const auto& part) { return part.first == key.text->bytes; });
        if (known != parts.end()) {
            known->second = std::move(value);
        } else {
            parts.emplace_back(key.text->bytes, std::move(value));
        }
    }
    return dict(std::move(parts));
}

JinjaValue JinjaRun::evaluate_unary(const JinjaNode& node, Scope& scope) {
    const JinjaValue value = evaluate(*node.nodes[0], scope);
    if (node.text == "not") return JinjaValue::boolean(!is_true(value));
    if (!value.is_number()) throw JinjaError{"a sign before " + std::string(kind_name(value))};
    return node.text == "+" ? JinjaValue::integer(value.number)
                            : calculate("-", JinjaValue::integer(0), value);
}

JinjaValue JinjaRun::evaluate_binary(const JinjaNode& node, Scope& scope) {
    JinjaValue left = evaluate(*node.nodes[0], scope);
    if (node.text == "and") return is_true(left) ? evaluate(*node.nodes[1], scope) : left;
    if (node.text == "or") return is_true(left) ? left : evaluate(*node.nodes[1], scope);
    const JinjaValue right = evaluate(*node.nodes[1], scope);
    if (node.text == "+") return add(left, right);
    if (node.text == "~") {
        MarkedText joined = printed(left);
        joined.append(printed(right));
        return text(std::move(joined));
    }
    return calculate(node.text, left, right);
}

JinjaValue JinjaRun::evaluate_comparison(const JinjaNode& node, Scope& scope) {
    JinjaValue left = evaluate(*node.nodes[0], scope);
    for (std::size_t i = 0; i < node.names.size(); i++) {
        JinjaValue right = evaluate(*node.nodes[i + 1], scope);
        if (!compare(node.names[i], left, right)) return JinjaValue::boolean(false);
        left = std::move(right);
    }
    return JinjaValue::boolean(true);
}

JinjaValue JinjaRun::evaluate_item(const JinjaNode& node, Scope& scope) {
    const JinjaValue object = evaluate(*node.nodes[0], scope);
    return item(object, evaluate(*node.nodes[1], scope));
}

JinjaValue JinjaRun::evaluate_slice(const JinjaNode& node, Scope& scope) {
    const JinjaValue object = evaluate(*node.nodes[0], scope);
    bool given[3] = {};
    std::int64_t bounds[3] = {0, 0, 1};
    for (std::size_t i = 0; i < 3; i++) {
        if (node.nodes[i + 1] == nullptr) continue;
        const JinjaValue bound = evaluate(*node.nodes[i + 1], scope);
        if (bound.is(Kind::none)) continue;
        if (!bound.is_number()) throw JinjaError{"a slice of " + std::string(kind_name(bound))};
        given[i] = true;
        bounds[i] = bound.number;
    }
    if (object.is(Kind::undefined)) throw JinjaError{"'" + object.name + "' is undefined"};
    if (!object.is(Kind::list) && !object.is(Kind::string)) return JinjaValue::undefined("the slice");
    const JinjaList all = items_of(object);
    const auto n = static_cast<std::int64_t>(all.size());
    const std::int64_t step = bounds[2];
    if (step == 0) throw JinjaError{"a slice with steps of zero"};
    // Python's rules: what lies outside is drawn to the next end.
    const std::int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
    const auto clamped = [&](std::size_t i, std::int64_t otherwise) {
        if (!given[i]) return otherwise;
        return std::clamp(bounds[i] < 0 ? bounds[i] + n : bounds[i], low, high);
    };
    const std::int64_t begin = clamped(0, step > 0 ? low : high), end = clamped(1, step > 0 ? high : low);
    JinjaList kept;
    for (std::int64_t at = begin; step > 0 ? at < end : at > end;) {
        kept.push_back(all[static_cast<std::size_t>(at)]);
        if (__builtin_add_overflow(at, step, &at)) break;
    }
    if (object.is(Kind::list)) return list(std::move(kept));
    MarkedText joined;
    for (const JinjaValue& character : kept) {
        joined.append(*character.text);
    }
    return text(std::move(joined));
}

JinjaArguments JinjaRun::arguments(const JinjaNode& node, Scope& scope) {
    JinjaArguments given;
    for (std::size_t i = 1; i < node.nodes.size(); i++) {
        JinjaValue value = evaluate(*node.nodes[i], scope);
        if (node.names[i].empty()) {
            given.values.push_back(std::move(value));
        } else {
            given.named.emplace_back(node.names[i], std::move(value));
        }
    }
    return given;
}

JinjaValue JinjaRun::evaluate_call(const JinjaNode& node, Scope& scope) {
    const JinjaNode& callee = *node.nodes[0];
    JinjaValue function;
    if (callee.kind == NodeKind::attribute) {
        const JinjaValue object = evaluate(*callee.nodes[0], scope);
        if (object.is(Kind::string)) return text_method(*object.text, callee.text, arguments(node, scope));
        if (object.is(Kind::dict)) return dict_method(*object.dict, callee.text, arguments(node, scope));
        function = attribute(object, callee.text);
    } else {
        function = evaluate(callee, scope);
    }
    const JinjaArguments given = arguments(node, scope);
    if (function.is(Kind::macro)) return call_macro(*function.macro, given);
    if (function.is(Kind::function)) return call_function(function.name, given);
    if (function.is(Kind::undefined)) throw JinjaError{"'" + function.name + "' is undefined"};
    throw JinjaError{"a call of " + std::string(kind_name(function))};
}

JinjaValue JinjaRun::call_macro(const JinjaNode& macro, const JinjaArguments& given) {
    Scope scope;
    scope.parent = &global_;
    if (given.values.size() > macro.names.size()) throw JinjaError{"too many arguments for " + macro.text};
    for (const auto& [name, value] : given.named) {
        if (std::find(macro.names.begin(), macro.names.end(), name) == macro.names.end())
            throw JinjaError{"no parameter '" + name + "' of " + macro.text};
    }
    for (std::size_t i = 0; i < macro.names.size(); i++) {
        const JinjaValue* value = given.find(i, macro.names[i]);
        scope.values[macro.names[i]] = value != nullptr            ? *value
                                       : macro.nodes[i] != nullptr ? evaluate(*macro.nodes[i], scope)
                                                                   : JinjaValue::undefined(macro.names[i]);
    }
    MarkedText printed;
    if (execute(*macro.nodes.back(), scope, &printed) != Flow::on)
        throw JinjaError{"a loop's word within a macro"};
    return text(std::move(printed));
}

}  // namespace gearkv
