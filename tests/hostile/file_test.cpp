// Paths that are no sound file.
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include <sys/stat.h>
#include <unistd.h>

#include "gearkv/decoder.hpp"
#include "hostile/hostile.hpp"
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

void write(const std::string& path, const Bytes& bytes) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

TEST_CASE("only regular files are opened") {
    const TemporaryDirectory folder;
    const Status directory = load(folder.file("."));
    CHECK(directory.code() == Code::io_error);
    CHECK(mentions(directory, "directory"));
    REQUIRE(mkfifo(folder.file("fifo").c_str(), 0600) == 0);
    const Status fifo = load(folder.file("fifo"));  // must not wait for a writer
    CHECK(fifo.code() == Code::io_error);
    CHECK(mentions(fifo, "FIFO"));
    const Status device = load("/dev/zero");
    CHECK(device.code() == Code::io_error);
    CHECK(mentions(device, "device"));
    const Status absent = load(folder.file("absent"));
    CHECK(absent.code() == Code::io_error);
    CHECK(mentions(absent, "No such file"));
    std::shared_ptr<const Model> model;
    CHECK(Model::load(nullptr, &model).code() == Code::invalid_argument);
    CHECK(Model::load("x", nullptr).code() == Code::invalid_argument);
}

TEST_CASE("a file without permission is an error of the system") {
    const TemporaryDirectory folder;
    write(folder.file("secret"), sound().write());
    REQUIRE(chmod(folder.file("secret").c_str(), 0) == 0);
    if (geteuid() == 0) {
        CHECK(load(folder.file("secret")).ok());  // nothing is forbidden to root
    } else {
        CHECK(load(folder.file("secret")).code() == Code::io_error);
    }
}

TEST_CASE("an empty file is no model and a sound one is") {
    const TemporaryDirectory folder;
    write(folder.file("empty"), {});
    CHECK(load(folder.file("empty")).code() == Code::not_a_model);
    write(folder.file("sound"), sound().write());
    CHECK(load(folder.file("sound")).ok());
}

TEST_CASE("a sparse file far larger than memory is judged by its header alone") {
    const TemporaryDirectory folder;
    GgufWriter file = sound();
    Bytes bytes = file.write();
    write(folder.file("sparse"), bytes);
    if (truncate(folder.file("sparse").c_str(), off_t{1} << 36) != 0) return;  // not on this file system
    CHECK(load(folder.file("sparse")).ok());
    write(folder.file("zeros"), {});
    REQUIRE(truncate(folder.file("zeros").c_str(), off_t{1} << 36) == 0);
    CHECK(load(folder.file("zeros")).code() == Code::not_a_model);
}
