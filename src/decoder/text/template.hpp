// Chat templates as data: what comes before and after each role's content.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gearkv/chat.hpp"

namespace gearkv {

// Stand in a shape for the text of the vocabulary's own tokens.
inline constexpr char bos_mark = '\x01';
inline constexpr char eos_mark = '\x02';

// A text with dates in it: a piece is itself, or the format of a date.
struct DatedText {
    struct Piece {
        std::string text;
        bool is_date = false;
    };
    std::vector<Piece> pieces;

    bool empty() const { return pieces.empty(); }
    std::string with(const ChatDate& date) const;
};

struct TurnShape {
    std::string before;
    std::string after;
    bool trim = false;  // white space around the content goes
};

enum class SystemPlace : std::uint8_t {
    own_turn,
    first_question,  // merged into it
    last_question,
};

struct ChatShape {
    const char* name = "";
    TurnShape system;  // when merged, what is around the text within the question
    TurnShape user;
    TurnShape assistant;
    std::string generation;  // asks for an answer
    SystemPlace system_place = SystemPlace::own_turn;
    bool alternates = false;        // questions and answers must come in turn
    bool trims_merged = false;      // system text and question are trimmed as one
    bool writes_bos = false;        // first of all
    bool bos_each_turn = false;     // before every later question too
    DatedText default_system;       // in place of an absent one
    DatedText system_prelude;       // before every system text
    bool always_system = false;     // a system turn is written without any text too
    bool forgets_thoughts = false;  // answers before the last question lose all up to </think>
    std::string no_thinking;        // follows `generation` when thinking is off
};

// The shape of a name, or null. May throw std::bad_alloc.
const ChatShape* find_shape(std::string_view name);
// Sets *out to the shape a template's text prints, with its details; false when it is none of those known.
// Linear time. May throw std::bad_alloc.
bool recognise_shape(std::string_view text, ChatShape* out);

// Without white space at both ends, Unicode's included.
std::string_view trimmed(std::string_view text) noexcept;

}  // namespace gearkv
