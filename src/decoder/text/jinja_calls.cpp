// The functions, methods, filters and tests that templates call.
#include <algorithm>
#include <array>
#include <cstdio>

#include "decoder/text/jinja_run.hpp"

namespace gearkv {

using Kind = JinjaValue::Kind;

bool is_true(const JinjaValue& value) {
    switch (value.kind) {
        case Kind::undefined:
        case Kind::none:
            return false;
        case Kind::boolean:
        case Kind::integer:
            return value.number != 0;
        case Kind::string:
            return !value.text->bytes.empty();
        case Kind::list:
            return !value.list->empty();
        case Kind::dict:
            return !value.dict->empty();
        default:
            return true;
    }
}

const JinjaValue* find_part(const JinjaDict& dict, std::string_view name) {
    for (const auto& [key, value] : dict) {
        if (key == name) return &value;
    }
    return nullptr;
}

const char* kind_name(const JinjaValue& value) {
    static constexpr const char* names[] = {
        "something undefined", "nothing",     "a truth value", "an integer", "a text", "a list",
        "a dictionary",        "a namespace", "a macro",       "a function"};
    return names[static_cast<std::size_t>(value.kind)];
}

std::size_t space_bytes(std::string_view text) noexcept {
    const auto byte = [&](std::size_t i) {
        return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
    };
    const unsigned a = byte(0), b = byte(1), c = byte(2);
    if ((a >= 9 && a <= 13) || (a >= 28 && a <= 32)) return 1;
    if (a == 0xc2 && (b == 0x85 || b == 0xa0)) return 2;
    if (a == 0xe1 && b == 0x9a && c == 0x80) return 3;
    if (a == 0xe2 && b == 0x80 && ((c >= 0x80 && c <= 0x8a) || c == 0xa8 || c == 0xa9 || c == 0xaf)) return 3;
    if ((a == 0xe2 && b == 0x81 && c == 0x9f) || (a == 0xe3 && b == 0x80 && c == 0x80)) return 3;
    return 0;
}

std::size_t character_bytes(std::string_view text) noexcept {
    if (text.empty()) return 0;
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    std::size_t found = 1;
    while (found < n && found < text.size() && (static_cast<unsigned char>(text[found]) & 0xc0) == 0x80) {
        found++;
    }
    return found;
}

const JinjaValue* JinjaArguments::find(std::size_t at, std::string_view keyword) const {
    if (at < values.size()) return &values[at];
    for (const auto& [name, value] : named) {
        if (name == keyword) return &value;
    }
    return nullptr;
}

namespace {

std::string format_date(const std::string& format, const ChatDate& date) {
    static constexpr std::array<const char*, 12> months = {"January",   "February", "March",    "April",
                                                           "May",       "June",     "July",     "August",
                                                           "September", "October",  "November", "December"};
    static constexpr std::array<const char*, 7> days = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                                        "Thursday", "Friday", "Saturday"};
    const std::string month = months[static_cast<std::size_t>(date.month - 1)];
    // Sakamoto's rule for the day of the week.
    static constexpr std::array<int, 12> shifts = {0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4};
    const int year = date.year - (date.month < 3 ? 1 : 0);
    const int day = year + year / 4 - year / 100 + year / 400 +
                    shifts[static_cast<std::size_t>(date.month - 1)] + date.day;
    const std::string weekday = days[static_cast<std::size_t>(day % 7)];
    std::string text;
    for (std::size_t i = 0; i < format.size(); i++) {
        const char kind = format[i] == '%' && i + 1 < format.size() ? format[i + 1] : '\0';
        char number[16] = {};
        if (kind == 'Y') std::snprintf(number, sizeof(number), "%04d", date.year);
        if (kind == 'y') std::snprintf(number, sizeof(number), "%02d", date.year % 100);
        if (kind == 'm') std::snprintf(number, sizeof(number), "%02d", date.month);
        if (kind == 'd') std::snprintf(number, sizeof(number), "%02d", date.day);
        // Templates are told the day, not the hour.
        if (kind == 'H' || kind == 'M' || kind == 'S') std::snprintf(number, sizeof(number), "00");
        const std::string value = kind == 'B'   ? month
                                  : kind == 'b' ? month.substr(0, 3)
                                  : kind == 'A' ? weekday
                                  : kind == 'a' ? weekday.substr(0, 3)
                                                : number;
        if (value.empty()) {
            text += format[i];
        } else {
            text += value;
            i++;
        }
    }
    return text;
}

// Bytes of white space, or of one of `set`, at the front.
std::size_t front_bytes(std::string_view text, const std::string* set) {
    if (set == nullptr) return space_bytes(text);
    const std::size_t n = character_bytes(text);
    for (std::size_t at = 0; n > 0 && at < set->size();) {
        const std::string_view character = std::string_view(*set).substr(at);
        const std::size_t n_known = character_bytes(character);
        if (character.substr(0, n_known) == text.substr(0, n)) return n;
        at += n_known;
    }
    return 0;
}

MarkedText stripped(const MarkedText& text, const std::string* set, bool front, bool back) {
    std::string_view rest = text.bytes;
    std::size_t first = 0;
    while (front && !rest.empty()) {
        const std::size_t n = front_bytes(rest, set);
        if (n == 0) break;
        first += n;
        rest.remove_prefix(n);
    }
    while (back && !rest.empty()) {
        std::size_t n = 1;
        while (n < 4 && n < rest.size() &&
               (static_cast<unsigned char>(rest[rest.size() - n]) & 0xc0) == 0x80) {
            n++;
        }
        if (front_bytes(rest.substr(rest.size() - n), set) != n) break;
        rest.remove_suffix(n);
    }
    return text.part(first, rest.size());
}

const std::string& text_of(const JinjaValue& value) {
    if (!value.is(Kind::string)) throw JinjaError{std::string(kind_name(value)) + " where a text belongs"};
    return value.text->bytes;
}

const JinjaValue& needed(const JinjaArguments& given, std::size_t at, const char* keyword) {
    const JinjaValue* value = given.find(at, keyword);
    if (value == nullptr) throw JinjaError{"the argument '" + std::string(keyword) + "' is missing"};
    return *value;
}

[[noreturn]] void refuse_case(const std::string& name) {
    throw JinjaError{"'" + name + "' of letters whose cases are not known here"};
}

// Small letters for Latin-1 and Cyrillic, and characters that have no case; of others nothing is known here.
void lower_character(char* bytes, std::size_t n) {
    const auto a = static_cast<unsigned char>(bytes[0]);
    const unsigned b = n > 1 ? static_cast<unsigned char>(bytes[1]) : 0;
    const auto set = [&](unsigned lead, unsigned next) {
        bytes[0] = static_cast<char>(lead);
        bytes[1] = static_cast<char>(next);
    };
    if (n == 2 && a == 0xc3 && b <= 0x9e && b != 0x97) return set(0xc3, b + 0x20);  // A with grave to thorn
    if (n == 2 && a == 0xd0 && b < 0x90) return set(0xd1, b + 0x10);
    if (n == 2 && a == 0xd0 && b < 0xa0) return set(0xd0, b + 0x20);
    if (n == 2 && a == 0xd0 && b < 0xb0) return set(0xd1, b - 0x20);
    const bool small = n == 2 && (a == 0xc2 || a == 0xc3 || a == 0xd0 || (a == 0xd1 && b < 0xa0));
    const bool caseless =
        (n == 3 && ((a == 0xe2 && b < 0x84) || (a >= 0xe3 && a <= 0xe9) || (a >= 0xeb && a <= 0xed))) ||
        (n == 4 && a == 0xf0 && b == 0x9f);
    if (!small && !caseless) refuse_case("lower");
}

MarkedText in_case(MarkedText text, const std::string& name) {
    bool inside = false;
    for (std::size_t at = 0; at < text.bytes.size();) {
        char& c = text.bytes[at];
        const std::size_t n = character_bytes(std::string_view(text.bytes).substr(at));
        if ((c & 0x80) != 0) {
            if (name != "lower") refuse_case(name);
            lower_character(&c, n);
        }
        const bool upper = c >= 'A' && c <= 'Z', lower = c >= 'a' && c <= 'z';
        const bool raise = name == "upper" || (name != "lower" && !inside);
        if (raise && lower) c = static_cast<char>(c - 32);
        if (!raise && upper) c = static_cast<char>(c + 32);
        inside = name == "capitalize" || upper || lower;
        at += n;
    }
    return text;
}

bool starts(const std::string& text, const std::string& part, bool at_end) {
    if (part.size() > text.size()) return false;
    return text.compare(at_end ? text.size() - part.size() : 0, part.size(), part) == 0;
}

std::size_t count_characters(const std::string& text) {
    std::size_t n = 0;
    for (std::size_t at = 0; at < text.size(); n++) {
        at += character_bytes(std::string_view(text).substr(at));
    }
    return n;
}

}  // namespace

JinjaValue JinjaRun::call_function(const std::string& name, const JinjaArguments& given) {
    if (name == "raise_exception") {
        throw JinjaError{given.values.empty() ? std::string() : printed(given.values[0]).bytes, true};
    }
    if (name == "strftime_now") return text({format_date(text_of(needed(given, 0, "format")), date_), 0});
    if (name == "range") {
        std::int64_t bounds[3] = {0, 0, 1};
        const std::size_t n = given.values.size();
        if (n < 1 || n > 3) throw JinjaError{"a range of too few or too many numbers"};
        for (std::size_t i = 0; i < n; i++) {
            if (!given.values[i].is_number()) throw JinjaError{"a range of no numbers"};
            bounds[n == 1 ? 1 : i] = given.values[i].number;
        }
        if (bounds[2] == 0) throw JinjaError{"a range with steps of zero"};
        JinjaList numbers;
        for (std::int64_t at = bounds[0]; bounds[2] > 0 ? at < bounds[1] : at > bounds[1];) {
            charge(64);
            numbers.push_back(JinjaValue::integer(at));
            if (__builtin_add_overflow(at, bounds[2], &at)) break;
        }
        return list(std::move(numbers));
    }
    JinjaDict parts(given.named.begin(), given.named.end());
    if (!given.values.empty()) throw JinjaError{"'" + name + "' of something else than names"};
    JinjaValue made = dict(std::move(parts));
    if (name == "namespace") made.kind = Kind::space;
    return made;
}

JinjaValue JinjaRun::split(const MarkedText& whole, const JinjaArguments& given) {
    const JinjaValue* separator = given.find(0, "sep");
    const JinjaValue* limit = given.find(1, "maxsplit");
    std::int64_t left = limit == nullptr ? -1 : limit->number;
    JinjaList parts;
    const std::string& bytes = whole.bytes;
    std::size_t at = 0;
    if (separator == nullptr || separator->is(Kind::none)) {
        if (left >= 0) throw JinjaError{"a limited split at white space"};
        while (at < bytes.size()) {
            std::size_t end = at;
            while (end < bytes.size() && space_bytes(std::string_view(bytes).substr(end)) == 0) {
                end++;
            }
            charge(64);
            if (end > at) parts.push_back(text(whole.part(at, end - at)));
            at = end;
            at += at < bytes.size() ? space_bytes(std::string_view(bytes).substr(at)) : 0;
        }
        return list(std::move(parts));
    }
    const std::string& mark = text_of(*separator);
    if (mark.empty()) throw JinjaError{"a split at nothing"};
    for (;;) {
        const std::size_t found = left == 0 ? bytes.npos : bytes.find(mark, at);
        charge(64);
        if (found == bytes.npos) break;
        parts.push_back(text(whole.part(at, found - at)));
        at = found + mark.size();
        left--;
    }
    parts.push_back(text(whole.part(at)));
    return list(std::move(parts));
}

JinjaValue JinjaRun::text_method(const MarkedText& whole, const std::string& name,
                                 const JinjaArguments& given) {
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
        const JinjaValue* set = given.find(0, "chars");
        const bool all = set == nullptr || set->is(Kind::none);
        charge(whole.bytes.size());
        return text(stripped(whole, all ? nullptr : &text_of(*set), name != "rstrip", name != "lstrip"));
    }
    if (name == "startswith" || name == "endswith") {
        const JinjaValue& part = needed(given, 0, "prefix");
        const bool at_end = name == "endswith";
        if (!part.is(Kind::list)) return JinjaValue::boolean(starts(whole.bytes, text_of(part), at_end));
        return JinjaValue::boolean(
            std::any_of(part.list->begin(), part.list->end(),
                        [&](const JinjaValue& one) { return starts(whole.bytes, text_of(one), at_end); }));
    }
    if (name == "split") return split(whole, given);
    if (name == "replace") {
        const std::string& old = text_of(needed(given, 0, "old"));
        const JinjaValue& other = needed(given, 1, "new");
        text_of(other);
        if (old.empty() || given.n() > 2) throw JinjaError{"'replace' of nothing, or not of all"};
        MarkedText changed;
        std::size_t at = 0;
        for (std::size_t found; (found = whole.bytes.find(old, at)) != std::string::npos;) {
            changed.append(whole.part(at, found - at));
            changed.append(*other.text);
            charge(other.text->bytes.size() + 1);
            at = found + old.size();
        }
        changed.append(whole.part(at));
        return text(std::move(changed));
    }
    if (name == "upper" || name == "lower" || name == "title" || name == "capitalize")
        return text(in_case(whole, name));
    if (name == "format") {
        MarkedText filled;
        std::size_t at = 0, n = 0;
        for (std::size_t found; (found = whole.bytes.find_first_of("{}", at)) != std::string::npos;) {
            if (whole.bytes.compare(found, 2, "{}") != 0 || n >= given.values.size())
                throw JinjaError{"'format' of more than {}"};
            filled.append(whole.part(at, found - at));
            filled.append(printed(given.values[n++]));
            charge(filled.bytes.size() / 16);
            at = found + 2;
        }
        filled.append(whole.part(at));
        return text(std::move(filled));
    }
    if (name == "find") {
        const std::size_t found = whole.bytes.find(text_of(needed(given, 0, "sub")));
        if (given.n() > 1) throw JinjaError{"'find' in a part of a text"};
        if (found == std::string::npos) return JinjaValue::integer(-1);
        return JinjaValue::integer(static_cast<std::int64_t>(count_characters(whole.bytes.substr(0, found))));
    }
    throw JinjaError{"the method '" + name + "' of a text"};
}

JinjaValue JinjaRun::dict_method(const JinjaDict& parts, const std::string& name,
                                 const JinjaArguments& given) {
    if (name == "get") {
        charge(parts.size());
        if (const JinjaValue* part = find_part(parts, text_of(needed(given, 0, "key")))) return *part;
        const JinjaValue* otherwise = given.find(1, "default");
        return otherwise == nullptr ? JinjaValue::none() : *otherwise;
    }
    JinjaList all;
    for (const auto& [key, part] : parts) {
        if (name == "keys") all.push_back(text({key, 0}));
        if (name == "values") all.push_back(part);
        if (name == "items") all.push_back(list({text({key, 0}), part}));
    }
    if (name == "keys" || name == "values" || name == "items") return list(std::move(all));
    const JinjaValue* function = find_part(parts, name);
    if (function != nullptr && function->is(Kind::macro)) return call_macro(*function->macro, given);
    throw JinjaError{"the method '" + name + "' of a dictionary"};
}

JinjaValue JinjaRun::filter(const std::string& name, const JinjaValue& value, const JinjaArguments& given) {
    if (name == "length" || name == "count") {
        if (value.is(Kind::string)) {
            return JinjaValue::integer(static_cast<std::int64_t>(count_characters(value.text->bytes)));
        }
        if (value.is(Kind::list)) return JinjaValue::integer(static_cast<std::int64_t>(value.list->size()));
        if (value.is(Kind::dict)) return JinjaValue::integer(static_cast<std::int64_t>(value.dict->size()));
        if (value.is(Kind::undefined)) return JinjaValue::integer(0);
        throw JinjaError{"the length of " + std::string(kind_name(value))};
    }
    if (name == "default" || name == "d") {
        const JinjaValue* other = given.find(0, "default_value");
        const JinjaValue* falsy = given.find(1, "boolean");
        const bool absent =
            value.is(Kind::undefined) || (falsy != nullptr && is_true(*falsy) && !is_true(value));
        if (!absent) return value;
        return other == nullptr ? text({}) : *other;
    }
    if (name == "first" || name == "last") {
        const JinjaList all = items_of(value);
        if (all.empty()) return JinjaValue::undefined("the " + name + " item");
        return name == "first" ? all.front() : all.back();
    }
    if (name == "list") return list(items_of(value));
    if (name == "items") {
        if (value.is(Kind::undefined)) return list({});
        if (!value.is(Kind::dict)) throw JinjaError{"the items of " + std::string(kind_name(value))};
        return dict_method(*value.dict, name, given);
    }
    if (name == "selectattr" || name == "rejectattr" || name == "select" || name == "reject" || name == "map")
        return select(name, value, given);
    if (name == "reverse" && value.is(Kind::list)) {
        return list(JinjaList(value.list->rbegin(), value.list->rend()));
    }
    if (name == "join") {
        const JinjaValue* between = given.find(0, "d");
        if (given.n() > 1) throw JinjaError{"a join of attributes"};
        MarkedText joined;
        bool first = true;
        for (const JinjaValue& one : items_of(value)) {
            if (!first && between != nullptr) joined.append(printed(*between));
            joined.append(printed(one));
            charge(joined.bytes.size() / 16);
            first = false;
        }
        return text(std::move(joined));
    }
    return text_filter(name, value, given);
}

JinjaValue JinjaRun::text_filter(const std::string& name, const JinjaValue& value,
                                 const JinjaArguments& given) {
    if (name == "string" || name == "safe") return text(printed(value));
    if (name == "trim") {
        const JinjaValue* set = given.find(0, "chars");
        return text(stripped(printed(value), set == nullptr ? nullptr : &text_of(*set), true, true));
    }
    if (name == "upper" || name == "lower" || name == "title" || name == "capitalize")
        return text(in_case(printed(value), name));
    if (name == "replace") return text_method(printed(value), name, given);
    if (name == "int" && value.is_number()) return JinjaValue::integer(value.number);
    if (name == "tojson") {
        if (value.is(Kind::none)) return text({"null", 0});
        if (value.is(Kind::boolean)) return text({value.number != 0 ? "true" : "false", 0});
        if (value.is(Kind::integer)) return text(printed(value));
        throw JinjaError{"the filter 'tojson' of " + std::string(kind_name(value))};
    }
    throw JinjaError{"the filter '" + name + "'"};
}

// The items that pass a test, or whose attribute does; or these attributes.
JinjaValue JinjaRun::select(const std::string& name, const JinjaValue& value, const JinjaArguments& given) {
    const bool by_attribute = name == "selectattr" || name == "rejectattr";
    const bool wanted = name == "select" || name == "selectattr";
    JinjaList kept;
    if (!is_true(value)) return list({});
    for (const JinjaValue& one : items_of(value)) {
        charge(1);
        if (name == "map") {
            if (given.find(9, "attribute") == nullptr || given.n() > 1)
                throw JinjaError{"'map' of something else than an attribute"};
            kept.push_back(item(one, given.named[0].second));
            continue;
        }
        JinjaArguments rest = given;
        std::size_t n_used = 0;
        const JinjaValue tested = by_attribute ? item(one, needed(given, n_used++, "attribute")) : one;
        std::string by;
        if (n_used < given.values.size()) by = text_of(given.values[n_used++]);
        rest.values.erase(rest.values.begin(), rest.values.begin() + static_cast<std::ptrdiff_t>(n_used));
        if ((by.empty() ? is_true(tested) : test(by, tested, rest)) == wanted) kept.push_back(one);
    }
    return list(std::move(kept));
}

bool JinjaRun::test(const std::string& name, const JinjaValue& value, const JinjaArguments& given) {
    if (name == "defined") return !value.is(Kind::undefined);
    if (name == "undefined") return value.is(Kind::undefined);
    if (name == "none") return value.is(Kind::none);
    if (name == "string") return value.is(Kind::string);
    if (name == "boolean") return value.is(Kind::boolean);
    if (name == "integer") return value.is(Kind::integer);
    if (name == "number") return value.is_number();
    if (name == "float") return false;
    if (name == "true") return value.is(Kind::boolean) && value.number != 0;
    if (name == "false") return value.is(Kind::boolean) && value.number == 0;
    if (name == "mapping") return value.is(Kind::dict);
    if (name == "callable") return value.is(Kind::function) || value.is(Kind::macro);
    if (name == "iterable" || name == "sequence") {
        return value.is(Kind::list) || value.is(Kind::string) || value.is(Kind::dict) ||
               value.is(Kind::undefined);
    }
    if (name == "odd" || name == "even") {
        if (!value.is_number()) throw JinjaError{"'" + name + "' of " + kind_name(value)};
        return (value.number % 2 != 0) == (name == "odd");
    }
    static constexpr std::pair<const char*, const char*> signs[] = {
        {"equalto", "=="}, {"eq", "=="}, {"==", "=="}, {"ne", "!="}, {"!=", "!="},         {"in", "in"},
        {"lt", "<"},       {"le", "<="}, {"gt", ">"},  {"ge", ">="}, {"greaterthan", ">"}, {"lessthan", "<"}};
    for (const auto& [known, sign] : signs) {
        if (name == known) return compare(sign, value, needed(given, 0, "other"));
    }
    throw JinjaError{"the test '" + name + "'"};
}

}  // namespace gearkv
