// The language of chat templates, Jinja, as a tree. What of it public templates need is read; anything else
// is refused by name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace gearkv {

// Thrown by reading and running, and turned into a Status before it leaves the library.
struct JinjaError {
    std::string message;
    bool raised = false;  // by the template itself, about its conversation
};

struct JinjaToken {
    enum class Kind { string, integer, name, sign };
    Kind kind = Kind::sign;
    std::string text;  // a string without quotes and escapes

    bool is(std::string_view other) const { return kind != Kind::string && text == other; }
};

// A run of text, {{ }} or {% %}; comments are dropped, and white space beside each is as the marks want it.
struct JinjaPart {
    enum class Kind { text, output, statement };
    Kind kind = Kind::text;
    std::string text;
    std::vector<JinjaToken> tokens;
};

struct JinjaNode;
using JinjaPointer = std::unique_ptr<JinjaNode>;

struct JinjaNode {
    enum class Kind : std::uint8_t {
        // Expressions.
        string,       // text
        integer,      // number
        name,         // text
        list,         // nodes
        dict,         // nodes: key, value, key, value
        unary,        // text: not, -, +
        binary,       // text: and, or, +, -, ~, *, /, //, %
        comparison,   // names[i] between nodes[i] and nodes[i + 1]
        conditional,  // nodes: value, condition, otherwise or null
        attribute,    // nodes[0].text
        item,         // nodes[0][nodes[1]]
        slice,        // nodes[0][nodes[1]:nodes[2]:nodes[3]], null where left out
        call,         // nodes[0](nodes[1...]), names[i] the keyword of nodes[i] or empty
        filter,       // nodes[0] | text(nodes[1...]), names as above
        test,         // nodes[0] is text(nodes[1...])
        // Statements.
        block,      // nodes, one after the other
        text,       // text
        output,     // nodes[0]
        set,        // names = nodes[0]
        set_part,   // names[0].names[1] = nodes[0]
        set_block,  // names[0] = what nodes[0] prints
        condition,  // nodes: condition, block, condition, block, ... and a last block for none of them
        loop,       // for names in nodes[0] if nodes[1]: nodes[2], else nodes[3]; null where left out
        macro,      // text(names), nodes: a default or null for each, and the block
        stop,       // break
        skip,       // continue
    };
    Kind kind = Kind::block;
    std::string text;
    std::int64_t number = 0;
    std::vector<JinjaPointer> nodes;
    std::vector<std::string> names;
    int depth = 1;  // of the tree below
};

// Cuts a template up, as the engines that run chat templates do: with trim_blocks and lstrip_blocks. In
// linear time. Throws JinjaError, std::bad_alloc.
std::vector<JinjaPart> scan_jinja(std::string_view text);
// Throws JinjaError, std::bad_alloc.
JinjaPointer parse_jinja(std::string_view text);

}  // namespace gearkv
