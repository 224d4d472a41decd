// Renders conversations for another program: one JSON request a line on stdin, one JSON answer a line on
// stdout.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gearkv/chat.hpp"

using Json = nlohmann::json;
using namespace gearkv;

namespace {

ChatRole role_of(const std::string& name) {
    return name == "system" ? ChatRole::system : name == "user" ? ChatRole::user : ChatRole::assistant;
}

Json answer(const Json& request) {
    std::unique_ptr<ChatTemplate> chat;
    Status status = request.contains("name")
                        ? ChatTemplate::find(request["name"].get<std::string>(), &chat)
                        : ChatTemplate::recognise(request["template"].get<std::string>(), &chat);
    if (!status.ok()) return {{"error", code_name(status.code())}, {"message", status.message()}};
    std::vector<ChatMessage> messages;
    for (const Json& message : request["messages"]) {
        messages.push_back({role_of(message["role"]), message["content"].get<std::string>()});
    }
    ChatOptions options;
    options.add_generation_prompt = request.value("generate", true);
    options.thinking = request.value("thinking", true);
    if (request.contains("date")) options.date = {request["date"][0], request["date"][1], request["date"][2]};
    std::vector<ChatSegment> segments;
    status = chat->render(messages.data(), messages.size(), options, request.value("bos", "<s>"),
                          request.value("eos", "</s>"), &segments);
    if (!status.ok())
        return {{"error", code_name(status.code())}, {"message", status.message()}, {"name", chat->name()}};
    Json out = {{"name", chat->name()}, {"extends", chat->extends()}, {"segments", Json::array()}};
    for (const ChatSegment& segment : segments) {
        out["segments"].push_back({segment.text, segment.is_markup});
    }
    return out;
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::cout << answer(Json::parse(line)).dump(-1, ' ', false, Json::error_handler_t::replace)
                  << std::endl;
    }
    return 0;
}
