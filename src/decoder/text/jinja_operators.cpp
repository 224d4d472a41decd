// What the signs between values do, as in Python.
#include <algorithm>

#include "decoder/text/jinja_run.hpp"

namespace gearkv {

using Kind = JinjaValue::Kind;

JinjaValue JinjaRun::add(const JinjaValue& a, const JinjaValue& b) {
    if (a.is(Kind::string) && b.is(Kind::string)) {
        MarkedText joined = *a.text;
        joined.append(*b.text);
        return text(std::move(joined));
    }
    if (a.is(Kind::list) && b.is(Kind::list)) {
        JinjaList joined = *a.list;
        joined.insert(joined.end(), b.list->begin(), b.list->end());
        return list(std::move(joined));
    }
    return calculate("+", a, b);
}

JinjaValue JinjaRun::calculate(const std::string& sign, const JinjaValue& a, const JinjaValue& b) {
    if (!a.is_number() || !b.is_number() || sign == "/")
        throw JinjaError{std::string(kind_name(a)) + " " + sign + " " + kind_name(b)};
    std::int64_t result = 0;
    bool overflows = false;
    if (sign == "+") overflows = __builtin_add_overflow(a.number, b.number, &result);
    if (sign == "-") overflows = __builtin_sub_overflow(a.number, b.number, &result);
    if (sign == "*") overflows = __builtin_mul_overflow(a.number, b.number, &result);
    if (sign == "//" || sign == "%") {
        if (b.number == 0) throw JinjaError{"a division by zero"};
        // Rounded down, as in Python.
        const bool lowest = b.number == -1;
        const std::int64_t rest = lowest ? 0 : a.number % b.number;
        const bool down = rest != 0 && (rest < 0) != (b.number < 0);
        if (sign == "%") {
            result = down ? rest + b.number : rest;
        } else if (lowest) {
            overflows = __builtin_sub_overflow(std::int64_t{0}, a.number, &result);
        } else {
            result = a.number / b.number - (down ? 1 : 0);
        }
    }
    if (overflows) throw JinjaError{"an integer of more than 64 bits"};
    return JinjaValue::integer(result);
}

bool JinjaRun::compare(const std::string& sign, const JinjaValue& a, const JinjaValue& b) {
    if (sign == "==") return equal(a, b);
    if (sign == "!=") return !equal(a, b);
    if (sign == "in") return contains(b, a);
    if (sign == "not in") return !contains(b, a);
    int order = 0;
    if (a.is_number() && b.is_number()) {
        order = a.number < b.number ? -1 : a.number > b.number ? 1 : 0;
    } else if (a.is(Kind::string) && b.is(Kind::string)) {
        order = a.text->bytes.compare(b.text->bytes);
    } else {
        throw JinjaError{std::string(kind_name(a)) + " " + sign + " " + kind_name(b)};
    }
    return sign == "<" ? order < 0 : sign == "<=" ? order <= 0 : sign == ">" ? order > 0 : order >= 0;
}

bool JinjaRun::equal(const JinjaValue& a, const JinjaValue& b, int depth) {
    charge(1);
    if (depth > 50) throw JinjaError{"a comparison of nested lists"};
    if (a.is_number() && b.is_number()) return a.number == b.number;
    if (a.kind != b.kind) return false;
    switch (a.kind) {
        case Kind::string:
            charge(a.text->bytes.size());
            return a.text->bytes == b.text->bytes;
        case Kind::list:
            return a.list->size() == b.list->size() &&
                   std::equal(
                       a.list->begin(), a.list->end(), b.list->begin(),
                       [&](const JinjaValue& x, const JinjaValue& y) { return equal(x, y, depth + 1); });
        case Kind::dict:
            return a.dict->size() == b.dict->size() &&
                   std::all_of(a.dict->begin(), a.dict->end(), [&](const auto& part) {
                       const JinjaValue* other = find_part(*b.dict, part.first);
                       return other != nullptr && equal(part.second, *other, depth + 1);
                   });
        case Kind::space:
            return a.dict == b.dict;
        case Kind::macro:
            return a.macro == b.macro;
        case Kind::function:
            return a.name == b.name;
        default:
            return true;
    }
}

bool JinjaRun::contains(const JinjaValue& whole, const JinjaValue& part) {
    switch (whole.kind) {
        case Kind::string:
            if (!part.is(Kind::string)) break;
            charge(whole.text->bytes.size());
            return whole.text->bytes.find(part.text->bytes) != std::string::npos;
        case Kind::list:
            return std::any_of(whole.list->begin(), whole.list->end(),
                               [&](const JinjaValue& item) { return equal(item, part); });
        case Kind::dict:
            return part.is(Kind::string) && find_part(*whole.dict, part.text->bytes) != nullptr;
        case Kind::undefined:
            return false;
        default:
            break;
    }
    throw JinjaError{std::string(kind_name(part)) + " in " + kind_name(whole)};
}

JinjaValue JinjaRun::attribute(const JinjaValue& object, const std::string& name) {
    if (object.is(Kind::undefined)) throw JinjaError{"'" + object.name + "' is undefined"};
    if (object.has_parts()) {
        charge(object.dict->size());
        if (const JinjaValue* part = find_part(*object.dict, name)) return *part;
    }
    return JinjaValue::undefined(name);
}

JinjaValue JinjaRun::item(const JinjaValue& object, const JinjaValue& index) {
    if (index.is(Kind::string)) return attribute(object, index.text->bytes);
    if (object.is(Kind::undefined)) throw JinjaError{"'" + object.name + "' is undefined"};
    if (index.is_number() && (object.is(Kind::list) || object.is(Kind::string))) {
        const JinjaList items = object.is(Kind::list) ? JinjaList() : items_of(object);
        const JinjaList& all = object.is(Kind::list) ? *object.list : items;
        const auto n = static_cast<std::int64_t>(all.size());
        const std::int64_t at = index.number < 0 ? index.number + n : index.number;
        if (at >= 0 && at < n) return all[static_cast<std::size_t>(at)];
    }
    return JinjaValue::undefined("the item");
}

JinjaList JinjaRun::items_of(const JinjaValue& value) {
    JinjaList items;
    switch (value.kind) {
        case Kind::undefined:
            return items;
        case Kind::list:
            charge(value.list->size());
            return *value.list;
        case Kind::dict:
            for (const auto& [key, part] : *value.dict) {
                items.push_back(text({key, 0}));
            }
            return items;
        case Kind::string:
            for (std::size_t at = 0; at < value.text->bytes.size();) {
                const std::size_t n = character_bytes(std::string_view(value.text->bytes).substr(at));
                charge(64);
                items.push_back(text(value.text->part(at, n)));
                at += n;
            }
            return items;
        default:
            throw JinjaError{"a loop over " + std::string(kind_name(value))};
    }
}

MarkedText JinjaRun::printed(const JinjaValue& value) {
    switch (value.kind) {
        case Kind::undefined:
            return {};
        case Kind::none:
            return {"None", 0};
        case Kind::boolean:
            return {value.number != 0 ? "True" : "False", 0};
        case Kind::integer:
            return {std::to_string(value.number), 0};
        case Kind::string:
            return *value.text;
        default:
            throw JinjaError{std::string(kind_name(value)) + " as a text"};
    }
}

}  // namespace gearkv
