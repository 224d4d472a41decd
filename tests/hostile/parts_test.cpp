// Split models whose parts do not fit together, or would lead elsewhere.
#include <functional>

#include <sys/stat.h>
#include <unistd.h>

#include "hostile/hostile.hpp"
#include "support/parts_maker.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::test;
using gearkv::testing::TemporaryDirectory;

namespace {

Status load(const std::string& path) {
    std::shared_ptr<const Model> model;
    const Status status = Model::load(path.c_str(), &model);
    REQUIRE(status.ok() == (model != nullptr));
    return status;
}

// Three parts, changed, opened by each; the status of the last.
Status load_changed(const std::function<void(std::vector<GgufWriter>&)>& change) {
    const TemporaryDirectory folder;
    std::vector<GgufWriter> parts = split_parts(sound(), 3);
    change(parts);
    write_parts(folder.file("m"), parts);
    Status status;
    for (std::size_t i = 0; i < 3; i++) {
        status = load(part_path(folder.file("m"), i, 3));
        CAPTURE(i, status.message());
        CHECK_FALSE(status.ok());
    }
    return status;
}

}  // namespace

TEST_CASE("a missing part is named, and so is what a part is if it is no file") {
    const TemporaryDirectory folder;
    const std::string prefix = folder.file("m");
    for (std::size_t missing = 0; missing < 3; missing++) {
        write_parts(prefix, split_parts(sound(), 3));
        REQUIRE(unlink(part_path(prefix, missing, 3).c_str()) == 0);
        for (std::size_t i = 0; i < 3; i++) {
            const Status status = load(part_path(prefix, i, 3));
            CAPTURE(status.message());
            CHECK(status.code() == Code::io_error);
            CHECK(mentions(status, "m-0000" + std::to_string(missing + 1) + "-of-00003.gguf"));
        }
    }
    write_parts(prefix, split_parts(sound(), 3));
    REQUIRE(unlink(part_path(prefix, 1, 3).c_str()) == 0);
    REQUIRE(mkfifo(part_path(prefix, 1, 3).c_str(), 0600) == 0);
    CHECK(mentions(load(part_path(prefix, 0, 3)), "FIFO"));
}

TEST_CASE("a part under another name is told the name it should have") {
    const TemporaryDirectory folder;
    const std::vector<GgufWriter> parts = split_parts(sound(), 3);
    for (const char* name : {"m.gguf", "m-00001-of-00003.gguf", "m-00002-of-00004.gguf", "m-2-of-3.gguf",
                             "m-00002-of-00003.gguf.bak", "-00002-of-00003.ggu", "2"}) {
        write_file(folder.file(name), parts[1].write());
        const Status status = load(folder.file(name));
        CAPTURE(name, status.message());
        CHECK(status.code() == Code::bad_metadata);
        CHECK(mentions(status, "-00002-of-00003.gguf"));
    }
}

TEST_CASE("part numbers and counts that cannot be are refused before other files are opened") {
    const auto alone = [](auto no, auto count) {
        const TemporaryDirectory folder;
        GgufWriter file = split_parts(sound(), 2)[0];
        file.set("split.no", no);
        file.set("split.count", count);
        write_file(folder.file("m-00001-of-00002.gguf"), file.write());
        return load(folder.file("m-00001-of-00002.gguf")).code();
    };
    using u16 = std::uint16_t;
    CHECK(alone(u16{2}, u16{2}) == Code::bad_metadata);
    CHECK(alone(u16{65535}, u16{65535}) == Code::bad_metadata);
    CHECK(alone(u16{0}, u16{65535}) == Code::bad_metadata);  // not its name
    CHECK(alone(u16{0}, std::uint32_t{65536}) == Code::bad_metadata);
    CHECK(alone(u16{0}, UINT64_MAX) == Code::bad_metadata);
    CHECK(alone(std::int32_t{-1}, u16{2}) == Code::bad_metadata);
    CHECK(alone(u16{0}, std::int32_t{-2}) == Code::bad_metadata);
    CHECK(alone(u16{0}, 2.0f) == Code::bad_metadata);
    CHECK(alone("../../etc/passwd", u16{2}) == Code::bad_metadata);
    CHECK(alone(u16{0}, "../../etc/passwd") == Code::bad_metadata);
    CHECK(alone(u16{0}, u16{2}) == Code::io_error);  // part 2 is not there
}

TEST_CASE("no name in the metadata leads to another file") {
    const TemporaryDirectory folder;
    std::vector<GgufWriter> parts = split_parts(sound(), 2);
    write_file(folder.file("secret-00002-of-00002.gguf"), parts[1].write());
    for (const char* key : {"general.name", "split.file", "split.prefix", "general.basename"}) {
        parts[0].set(key, folder.file("secret"));
        parts[0].set(key, "../secret");
    }
    write_file(folder.file("m-00001-of-00002.gguf"), parts[0].write());
    CHECK(load(folder.file("m-00001-of-00002.gguf")).code() == Code::io_error);
}

TEST_CASE("parts that are not of one model are refused") {
    CHECK(load_changed([](auto& parts) { std::swap(parts[1], parts[2]); }).code() == Code::bad_metadata);
    CHECK(load_changed([](auto& parts) { parts[1] = parts[2]; }).code() == Code::bad_metadata);
    CHECK(load_changed([](auto& parts) { parts[1].erase("split.tensors.count"); }).code() ==
          Code::missing_key);
    CHECK(load_changed([](auto& parts) { parts[2].set("split.tensors.count", std::int32_t{1}); }).code() ==
          Code::bad_metadata);
    CHECK(load_changed([](auto& parts) { parts[2].set("split.tensors.count", std::int32_t{-1}); }).code() ==
          Code::bad_metadata);
    CHECK(load_changed([](auto& parts) {
              for (GgufWriter& part : parts) {
                  part.set("split.tensors.count", std::int32_t{1000});
              }
          }).code() == Code::corrupt_model);
    CHECK(load_changed([](auto& parts) { parts[1].tensors.pop_back(); }).code() == Code::corrupt_model);
    // One tensor in two parts.
    CHECK(load_changed([](auto& parts) { parts[1].tensors[0] = parts[2].tensors[0]; }).code() ==
          Code::corrupt_model);
    // Metadata that only another part has.
    CHECK(load_changed([](auto& parts) {
              parts[1].values.push_back(parts[0].values[0]);
              parts[0].values.erase(parts[0].values.begin());
          }).code() == Code::missing_key);
    CHECK(mentions(load_changed([](auto& parts) { parts[1].version = 4; }), "part 2 of 3"));
}

TEST_CASE("every part is held to the end of its own file") {
    const TemporaryDirectory folder;
    const std::string prefix = folder.file("m");
    const std::vector<GgufWriter> parts = split_parts(sound(), 3);
    write_parts(prefix, parts);
    REQUIRE(load(part_path(prefix, 0, 3)).ok());
    for (std::size_t i = 0; i < 3; i++) {
        const Bytes whole = parts[i].write();
        for (std::size_t n = 0; n < whole.size(); n += 1 + whole.size() / 23) {
            write_file(part_path(prefix, i, 3), Bytes(whole.begin(), whole.begin() + static_cast<long>(n)));
            const Status status = load(part_path(prefix, 0, 3));
            CAPTURE(i, n, status.message());
            REQUIRE((status.code() == Code::truncated || status.code() == Code::not_a_model));
        }
        write_parts(prefix, parts);
    }
}

TEST_CASE("one part in memory is no model") {
    const std::vector<GgufWriter> parts = split_parts(sound(), 2);
    CHECK(code_of(parts[0]) == "unsupported_model");
    CHECK(code_of(parts[1]) == "unsupported_model");
}
