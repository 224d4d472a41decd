// Any text as a chat template, and any messages: recognised or refused, rendered or refused, and what people
// wrote never ends in the markup. The input is a text and, behind zeros, messages that begin with their role.
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

void render(const ChatTemplate& chat, const std::vector<ChatMessage>& messages, const ChatOptions& options) {
    std::string text;
    if (!chat.default_system(options, &text).ok()) std::abort();
    std::vector<ChatSegment> segments;
    const Status status = chat.render(messages.data(), messages.size(), options, "<s>", "</s>", &segments);
    if (!status.ok()) {
        if (status.code() != Code::bad_conversation || status.message()[0] == '\0') std::abort();
        return;
    }
    std::size_t n_plain = 0, n_content = 0;
    for (const ChatSegment& segment : segments) {
        if (segment.text.empty()) std::abort();
        if (!segment.is_markup) n_plain += segment.text.size();
    }
    for (const ChatMessage& message : messages) {
        n_content += message.content.size();
    }
    // The file's own system text, and dates before each of them, are plain as well.
    if (n_plain > n_content + (messages.size() + 1) * (text.size() + (std::size_t{2} << 20))) std::abort();
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
            messages.push_back({static_cast<ChatRole>(role), std::string(message.substr(1))});
        }
        at = next;
    }
    ChatOptions options;
    options.add_generation_prompt = n_bytes % 2 == 0;
    options.thinking = n_bytes % 3 != 0;
    std::unique_ptr<ChatTemplate> chat;
    const Status status = ChatTemplate::recognise(input.substr(0, end), &chat);
    if (status.ok() != (chat != nullptr)) std::abort();
    if (!status.ok() && status.code() != Code::unknown_template) std::abort();
    if (chat != nullptr) render(*chat, messages, options);
    if (ChatTemplate::find(input.substr(0, end), &chat).ok()) render(*chat, messages, options);
    for (const char* name : {"llama2", "gemma", "zephyr"}) {
        if (!ChatTemplate::find(name, &chat).ok()) std::abort();
        render(*chat, messages, options);
    }
    return 0;
}
