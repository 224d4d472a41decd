// The tree of a template, by recursive descent; precedence is Jinja's, where | and `is` bind closest.
#include <initializer_list>

#include "decoder/text/jinja_syntax.hpp"

namespace gearkv {
namespace {

using Kind = JinjaNode::Kind;
using Tokens = std::vector<JinjaToken>;

// Deeper than any public template by far, shallow enough for a thread's stack.
constexpr int max_depth = 120;

JinjaPointer node(Kind kind, std::string text = {}) {
    auto made = std::make_unique<JinjaNode>();
    made->kind = kind;
    made->text = std::move(text);
    return made;
}

void add(JinjaNode& parent, JinjaPointer child) {
    if (child != nullptr && child->depth >= parent.depth) parent.depth = child->depth + 1;
    if (parent.depth > max_depth) throw JinjaError{"nested too deeply"};
    parent.nodes.push_back(std::move(child));
}

JinjaPointer with(Kind kind, std::string text, JinjaPointer first, JinjaPointer second = nullptr) {
    JinjaPointer made = node(kind, std::move(text));
    add(*made, std::move(first));
    if (second != nullptr) add(*made, std::move(second));
    return made;
}

// The expressions within one output or statement.
class Expressions {
  public:
    explicit Expressions(const Tokens& tokens) : tokens_(tokens) {}

    bool done() const { return at_ == tokens_.size(); }
    bool is(std::string_view text) const { return !done() && tokens_[at_].is(text); }
    bool is_kind(JinjaToken::Kind kind) const { return !done() && tokens_[at_].kind == kind; }
    bool is_next(std::string_view text) const {
        return at_ + 1 < tokens_.size() && tokens_[at_ + 1].is(text);
    }

    bool take(std::string_view text) {
        if (!is(text)) return false;
        at_++;
        return true;
    }

    void expect(std::string_view text) {
        if (!take(text)) {
            throw JinjaError{"'" + std::string(text) + "' expected, found " +
                             (done() ? "the end" : "'" + tokens_[at_].text.substr(0, 32) + "'")};
        }
    }

    std::string take_name() {
        if (!is_kind(JinjaToken::Kind::name)) throw JinjaError{"a name expected"};
        return tokens_[at_++].text;
    }

    // Without a conditional where `if` may follow, as in a loop.
    JinjaPointer read(bool conditional = true) {
        const Nested nested(*this);
        JinjaPointer value = read_or();
        while (conditional && take("if")) {
            JinjaPointer whole = with(Kind::conditional, {}, std::move(value), read_or());
            add(*whole, take("else") ? read() : nullptr);
            value = std::move(whole);
        }
        return value;
    }

    JinjaPointer read_tuple() {
        JinjaPointer value = read();
        if (!is(",")) return value;
        JinjaPointer list = with(Kind::list, {}, std::move(value));
        while (take(",")) {
            if (done()) break;
            add(*list, read());
        }
        return list;
    }

  private:
    // Counts how deep the reader itself is.
    struct Nested {
        explicit Nested(Expressions& owner) : owner_(owner) {
            if (++owner_.nesting_ > max_depth) throw JinjaError{"nested too deeply"};
        }
        ~Nested() { owner_.nesting_--; }
        Nested(const Nested&) = delete;
        Nested& operator=(const Nested&) = delete;

      private:
        Expressions& owner_;
    };

    JinjaPointer read_or() {
        JinjaPointer left = read_and();
        while (take("or")) {
            left = with(Kind::binary, "or", std::move(left), read_and());
        }
        return left;
    }

    JinjaPointer read_and() {
        JinjaPointer left = read_not();
        while (take("and")) {
            left = with(Kind::binary, "and", std::move(left), read_not());
        }
        return left;
    }

    JinjaPointer read_not() {
        if (!take("not")) return read_comparison();
        const Nested nested(*this);
        return with(Kind::unary, "not", read_not());
    }

    JinjaPointer read_comparison() {
        JinjaPointer left = read_sum();
        JinjaPointer chain;
        for (;;) {
            std::string sign;
            for (const char* known : {"==", "!=", "<=", ">=", "<", ">", "in"}) {
                if (sign.empty() && take(known)) sign = known;
            }
            if (sign.empty() && is("not") && is_next("in")) {
                at_ += 2;
                sign = "not in";
            }
            if (sign.empty()) return chain == nullptr ? std::move(left) : std::move(chain);
            if (chain == nullptr) chain = with(Kind::comparison, {}, std::move(left));
            chain->names.push_back(sign);
            add(*chain, read_sum());
        }
    }

    using Reader = JinjaPointer (Expressions::*)();
    JinjaPointer read_binary(std::initializer_list<const char*> signs, Reader reader) {
        JinjaPointer left = (this->*reader)();
        for (bool found = true; found;) {
            found = false;
            for (const char* sign : signs) {
                if (!take(sign)) continue;
                left = with(Kind::binary, sign, std::move(left), (this->*reader)());
                found = true;
            }
        }
        return left;
    }

    JinjaPointer read_sum() { return read_binary({"+", "-"}, &Expressions::read_joined); }
    JinjaPointer read_joined() { return read_binary({"~"}, &Expressions::read_product); }
    JinjaPointer read_product() { return read_binary({"*", "/", "//", "%"}, &Expressions::read_filtered); }
    JinjaPointer read_filtered() { return read_unary(true); }

    JinjaPointer read_unary(bool filtered) {
        const Nested nested(*this);
        JinjaPointer value;
        if (take("-")) {
            value = with(Kind::unary, "-", read_unary(false));
        } else if (take("+")) {
            value = with(Kind::unary, "+", read_unary(false));
        } else {
            value = read_primary();
        }
        value = read_postfix(std::move(value));
        return filtered ? read_filters(std::move(value)) : std::move(value);
    }

    JinjaPointer read_primary() {
        if (done()) throw JinjaError{"an expression expected, found the end"};
        const JinjaToken& token = tokens_[at_];
        if (token.kind == JinjaToken::Kind::string) {
            JinjaPointer string = node(Kind::string);
            while (is_kind(JinjaToken::Kind::string)) {
                string->text += tokens_[at_++].text;
            }
            return string;
        }
        if (token.kind == JinjaToken::Kind::integer) {
            JinjaPointer integer = node(Kind::integer);
            integer->number = std::stoll(token.text);
            at_++;
            return integer;
        }
        if (token.kind == JinjaToken::Kind::name) {
            at_++;
            return node(Kind::name, token.text);
        }
        if (take("(")) {
            if (take(")")) return node(Kind::list);
            JinjaPointer value = read();
            if (is(",")) {
                JinjaPointer list = with(Kind::list, {}, std::move(value));
                while (take(",")) {
                    if (is(")")) break;
                    add(*list, read());
                }
                value = std::move(list);
            }
            expect(")");
            return value;
        }
        if (take("[")) {
            JinjaPointer list = node(Kind::list);
            while (!take("]")) {
                if (!list->nodes.empty()) expect(",");
                if (take("]")) break;
                add(*list, read());
            }
            return list;
        }
        if (take("{")) {
            JinjaPointer dict = node(Kind::dict);
            while (!take("}")) {
                if (!dict->nodes.empty()) expect(",");
                if (take("}")) break;
                add(*dict, read());
                expect(":");
                add(*dict, read());
            }
            return dict;
        }
        throw JinjaError{"an expression expected, found '" + token.text.substr(0, 32) + "'"};
    }

    JinjaPointer read_postfix(JinjaPointer value) {
        for (;;) {
            if (take(".")) {
                if (is_kind(JinjaToken::Kind::integer)) {
                    value = with(Kind::item, {}, std::move(value), read_primary());
                } else {
                    value = with(Kind::attribute, take_name(), std::move(value));
                }
            } else if (take("[")) {
                value = read_item(std::move(value));
            } else if (is("(")) {
                value = read_arguments(with(Kind::call, {}, std::move(value)));
            } else {
                return value;
            }
        }
    }

    JinjaPointer read_item(JinjaPointer object) {
        JinjaPointer parts[3];
        std::size_t n_colons = 0;
        while (!take("]")) {
            if (take(":")) {
                if (++n_colons > 2) throw JinjaError{"a slice of too many parts"};
            } else {
                if (parts[n_colons] != nullptr) throw JinjaError{"']' expected"};
                parts[n_colons] = read();
            }
        }
        if (n_colons == 0) {
            if (parts[0] == nullptr) throw JinjaError{"an index expected"};
            return with(Kind::item, {}, std::move(object), std::move(parts[0]));
        }
        JinjaPointer slice = with(Kind::slice, {}, std::move(object));
        for (JinjaPointer& part : parts) {
            add(*slice, std::move(part));
        }
        return slice;
    }

    JinjaPointer read_arguments(JinjaPointer owner) {
        owner->names.resize(owner->nodes.size());
        expect("(");
        while (!take(")")) {
            if (owner->nodes.size() > 1) expect(",");
            if (take(")")) break;
            const bool keyword = is_kind(JinjaToken::Kind::name) && is_next("=");
            owner->names.push_back(keyword ? take_name() : std::string());
            if (keyword) expect("=");
            add(*owner, read());
        }
        return owner;
    }

    JinjaPointer read_filters(JinjaPointer value) {
        for (;;) {
            if (take("|")) {
                JinjaPointer filter = with(Kind::filter, take_name(), std::move(value));
                filter->names.resize(1);
                value = is("(") ? read_arguments(std::move(filter)) : std::move(filter);
            } else if (take("is")) {
                value = read_test(std::move(value));
            } else if (is("(")) {
                value = read_arguments(with(Kind::call, {}, std::move(value)));
            } else {
                return value;
            }
        }
    }

    JinjaPointer read_test(JinjaPointer value) {
        const bool negated = take("not");
        JinjaPointer test = with(Kind::test, take_name(), std::move(value));
        test->names.resize(1);
        const bool plain = is_kind(JinjaToken::Kind::string) || is_kind(JinjaToken::Kind::integer) ||
                           is("[") || is("{") ||
                           (is_kind(JinjaToken::Kind::name) && !is("else") && !is("or") && !is("and") &&
                            !is("is") && !is("if") && !is("in") && !is("not"));
        if (is("(")) {
            test = read_arguments(std::move(test));
        } else if (plain) {
            add(*test, read_postfix(read_primary()));
            test->names.emplace_back();
        }
        return negated ? with(Kind::unary, "not", std::move(test)) : std::move(test);
    }

    const Tokens& tokens_;
    std::size_t at_ = 0;
    int nesting_ = 0;
};

// The statements of a template.
class Statements {
  public:
    explicit Statements(std::vector<JinjaPart> parts) : parts_(std::move(parts)) {}

    JinjaPointer read() {
        JinjaPointer all = read_block({});
        if (at_ < parts_.size()) throw JinjaError{"'" + word() + "' without its beginning"};
        return all;
    }

  private:
    // The first word of the statement that is next; empty when it is none.
    std::string word() const {
        if (at_ >= parts_.size() || parts_[at_].kind != JinjaPart::Kind::statement) return {};
        return parts_[at_].tokens.empty() ? std::string() : parts_[at_].tokens[0].text;
    }

    bool ends(std::initializer_list<const char*> words) const {
        const std::string now = word();
        for (const char* word : words) {
            if (now == word) return true;
        }
        return false;
    }

    // Up to one of these words, or one that only ends something.
    JinjaPointer read_block(std::initializer_list<const char*> words) {
        if (++nesting_ > max_depth) throw JinjaError{"nested too deeply"};
        JinjaPointer block = node(Kind::block);
        while (at_ < parts_.size() && !ends(words)) {
            if (ends({"elif", "else", "endif", "endfor", "endset", "endmacro", "endgeneration"})) break;
            const JinjaPart& part = parts_[at_];
            if (part.kind == JinjaPart::Kind::text) {
                add(*block, node(Kind::text, part.text));
                at_++;
            } else if (part.kind == JinjaPart::Kind::output) {
                Expressions expressions(part.tokens);
                add(*block, with(Kind::output, {}, expressions.read_tuple()));
                if (!expressions.done()) throw JinjaError{"more than one expression in an output"};
                at_++;
            } else {
                add(*block, read_statement());
            }
        }
        nesting_--;
        return block;
    }

    JinjaPointer read_statement() {
        const std::string kind = word();
        if (kind == "if") return read_condition();
        if (kind == "for") return read_loop();
        if (kind == "set") return read_set();
        if (kind == "macro") return read_macro();
        Expressions expressions(parts_[at_].tokens);
        expressions.take_name();
        if (!expressions.done()) throw JinjaError{"the statement '" + kind.substr(0, 32) + "'"};
        at_++;
        if (kind == "break") return node(Kind::stop);
        if (kind == "continue") return node(Kind::skip);
        if (kind == "generation") {
            JinjaPointer block = read_block({});
            finish("endgeneration");
            return block;
        }
        throw JinjaError{"the statement '" + kind.substr(0, 32) + "'"};
    }

    // The expressions of the next statement behind its first word.
    Expressions open() {
        Expressions expressions(parts_[at_].tokens);
        expressions.take_name();
        at_++;
        return expressions;
    }

    static void close(const Expressions& expressions) {
        if (!expressions.done()) throw JinjaError{"more in a statement than belongs there"};
    }

    void finish(const char* end) {
        if (word() != end) throw JinjaError{"'" + std::string(end) + "' expected"};
        close(open());
    }

    JinjaPointer read_condition() {
        JinjaPointer condition = node(Kind::condition);
        do {
            Expressions expressions = open();
            add(*condition, expressions.read_tuple());
            close(expressions);
            add(*condition, read_block({}));
        } while (word() == "elif");
        if (word() == "else") {
            close(open());
            add(*condition, read_block({}));
        }
        finish("endif");
        return condition;
    }

    JinjaPointer read_loop() {
        Expressions expressions = open();
        JinjaPointer loop = node(Kind::loop);
        const bool bracketed = expressions.take("(");
        do {
            loop->names.push_back(expressions.take_name());
        } while (expressions.take(","));
        if (bracketed) expressions.expect(")");
        expressions.expect("in");
        add(*loop, expressions.read(false));
        add(*loop, expressions.take("if") ? expressions.read() : nullptr);
        close(expressions);
        add(*loop, read_block({}));
        const bool has_else = word() == "else";
        if (has_else) close(open());
        add(*loop, has_else ? read_block({}) : nullptr);
        finish("endfor");
        return loop;
    }

    JinjaPointer read_set() {
        Expressions expressions = open();
        JinjaPointer set = node(Kind::set);
        set->names.push_back(expressions.take_name());
        if (expressions.take(".")) {
            set->kind = Kind::set_part;
            set->names.push_back(expressions.take_name());
        }
        while (set->kind == Kind::set && expressions.take(",")) {
            set->names.push_back(expressions.take_name());
        }
        if (expressions.take("=")) {
            add(*set, expressions.read_tuple());
            close(expressions);
            return set;
        }
        close(expressions);
        if (set->kind != Kind::set || set->names.size() > 1) throw JinjaError{"'=' expected"};
        set->kind = Kind::set_block;
        add(*set, read_block({}));
        finish("endset");
        return set;
    }

    JinjaPointer read_macro() {
        Expressions expressions = open();
        JinjaPointer macro = node(Kind::macro, expressions.take_name());
        expressions.expect("(");
        while (!expressions.take(")")) {
            if (!macro->names.empty()) expressions.expect(",");
            macro->names.push_back(expressions.take_name());
            add(*macro, expressions.take("=") ? expressions.read() : nullptr);
        }
        close(expressions);
        add(*macro, read_block({}));
        finish("endmacro");
        return macro;
    }

    std::vector<JinjaPart> parts_;
    std::size_t at_ = 0;
    int nesting_ = 0;
};

}  // namespace

JinjaPointer parse_jinja(std::string_view text) {
    return Statements(scan_jinja(text)).read();
}

}  // namespace gearkv
