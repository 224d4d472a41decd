// What the expressions of a template are made of. Texts remember who wrote them, through all that is done to
// them: so a conversation falls into the template's markup and what people and models said.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "decoder/text/jinja_syntax.hpp"

namespace gearkv {

// UTF-8, and for each byte its origin: 0 the template, n the message of index n - 1.
struct MarkedText {
    std::string bytes;
    std::u32string origins;

    MarkedText() = default;
    MarkedText(std::string text, std::uint32_t origin)
        : bytes(std::move(text)), origins(bytes.size(), static_cast<char32_t>(origin)) {}

    void append(const MarkedText& other) {
        bytes += other.bytes;
        origins += other.origins;
    }
    MarkedText part(std::size_t first, std::size_t n = std::string::npos) const {
        MarkedText text;
        text.bytes = bytes.substr(first, n);
        text.origins = origins.substr(first, n);
        return text;
    }
};

struct JinjaValue;
using JinjaList = std::vector<JinjaValue>;
using JinjaDict = std::vector<std::pair<std::string, JinjaValue>>;

// Lists, dictionaries and macros belong to the run they come from.
struct JinjaValue {
    enum class Kind : std::uint8_t {
        undefined,
        none,
        boolean,
        integer,
        string,
        list,
        dict,
        space,     // a namespace: a dictionary that can be written
        macro,     // of the template
        function,  // of the engine
    };
    Kind kind = Kind::undefined;
    std::int64_t number = 0;  // an integer, or a boolean as 0 and 1
    std::shared_ptr<const MarkedText> text;
    const JinjaList* list = nullptr;
    JinjaDict* dict = nullptr;
    const JinjaNode* macro = nullptr;
    std::string name;  // of a function, or of what is undefined

    bool is(Kind other) const { return kind == other; }
    bool is_number() const { return kind == Kind::integer || kind == Kind::boolean; }
    bool has_parts() const { return kind == Kind::dict || kind == Kind::space; }

    static JinjaValue none() { return of(Kind::none); }
    static JinjaValue boolean(bool value) { return of(Kind::boolean, value ? 1 : 0); }
    static JinjaValue integer(std::int64_t value) { return of(Kind::integer, value); }
    static JinjaValue undefined(std::string name) {
        JinjaValue value;
        value.name = std::move(name);
        return value;
    }
    static JinjaValue function(std::string name) {
        JinjaValue value = of(Kind::function);
        value.name = std::move(name);
        return value;
    }

  private:
    static JinjaValue of(Kind kind, std::int64_t number = 0) {
        JinjaValue value;
        value.kind = kind;
        value.number = number;
        return value;
    }
};

bool is_true(const JinjaValue& value);
// The part of this name, or null.
const JinjaValue* find_part(const JinjaDict& dict, std::string_view name);
const char* kind_name(const JinjaValue& value);

// White space of Unicode as Python sees it, as an encoded character at the front of a text; 0 bytes when
// there is none.
std::size_t space_bytes(std::string_view text) noexcept;
// Bytes of the character at the front of a text, at least 1 unless the text is empty.
std::size_t character_bytes(std::string_view text) noexcept;

}  // namespace gearkv
