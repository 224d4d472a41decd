// Any text as a chat template, and any messages: run or refused, in bounded time, and what people wrote never
// ends in the markup. The input is a text and, behind zeros, messages that begin with their role.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gearkv/chat.hpp"

using namespace gearkv;

namespace {

// Stands in every message, and in no template that could not print it by itself.
constexpr char written = '\x1f';

void render(const ChatTemplate& chat, const std::vector<ChatMessage>& messages, const ChatOptions& options,
            bool prints_written) {
    std::string text;
    Status status = chat.default_system(options, &text);
    if (!status.ok() && status.code() != Code::bad_conversation) std::abort();
    std::vector<ChatSegment> segments;
    status = chat.render(messages.data(), messages.size(), options, "<s>", "</s>", &segments);
    if (!status.ok()) {
        if (status.code() != Code::bad_conversation || status.message()[0] == '\0') std::abort();
        return;
    }
    std::size_t n_bytes = 0, n_content = 0;
    for (std::size_t i = 0; i < segments.size(); i++) {
        const ChatSegment& segment = segments[i];
        if (segment.text.empty() || (i > 0 && segment.is_markup == segments[i - 1].is_markup)) std::abort();
        if (segment.is_markup && !prints_written && segment.text.find(written) != std::string::npos)
            std::abort();
        n_bytes += segment.text.size();
    }
    for (const ChatMessage& message : messages) {
        n_content += message.content.size();
    }
    if (n_bytes > (std::size_t{1} << 22) + 4096 * messages.size() + 256 * n_content) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    const std::string_view input(reinterpret_cast<const char*>(data), n_bytes);
    std::vector<ChatMessage> messages;
    const std::size_t end = std::min(input.find('\0'), input.size());
    for (std::size_t at = end; at < input.size();) {
        const std::size_t next = std::min(input.find('\0', at + 1), input.size());
        const std::string_view message = input.substr(at + 1, next - at - 1);
        if (!message.empty()) {
            const auto role = static_cast<unsigned char>(message[0]) % 3;
            messages.push_back(
                {static_cast<ChatRole>(role), written + std::string(message.substr(1)) + written});
        }
        at = next;
    }
    ChatOptions options;
    options.add_generation_prompt = n_bytes % 2 == 0;
    options.thinking = n_bytes % 3 != 0;
    const std::string_view text = input.substr(0, end);
    const bool prints_written = text.find(written) != text.npos || text.find('\\') != text.npos;
    std::unique_ptr<ChatTemplate> chat;
    const Status status = ChatTemplate::recognise(text, &chat);
    if (status.ok() != (chat != nullptr)) std::abort();
    if (!status.ok() && status.code() != Code::unknown_template) std::abort();
    if (chat != nullptr) render(*chat, messages, options, prints_written);
    if (ChatTemplate::find(text, &chat).ok()) render(*chat, messages, options, false);
    static const auto* const named = new std::vector<std::unique_ptr<ChatTemplate>>([] {
        std::vector<std::unique_ptr<ChatTemplate>> all(4);
        const char* names[] = {"llama2", "gemma", "zephyr", "smollm3"};
        for (std::size_t i = 0; i < all.size(); i++) {
            if (!ChatTemplate::find(names[i], &all[i]).ok()) std::abort();
        }
        return all;
    }());
    for (const auto& one : *named) {
        render(*one, messages, options, false);
    }
    return 0;
}
