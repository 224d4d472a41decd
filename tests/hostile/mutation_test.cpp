// Every shorter length and many single-byte changes of sound files.
#include <fstream>
#include <iterator>
#include <random>

#include "decoder/gguf/guarded.hpp"
#include "gearkv/decoder.hpp"
#include "hostile/hostile.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

Bytes bundled_model() {
    std::ifstream file(GEARKV_MODEL_DIR "/tiny-q8_0.gguf", std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    REQUIRE(text.size() == 3654464);
    return Bytes(text.begin(), text.end());
}

constexpr std::size_t bundled_header_bytes = 24384;

// A mapping-like view: the model is loaded from the first n bytes, with nothing readable assumed behind them.
Status load_prefix(const Bytes& bytes, std::size_t n) {
    std::shared_ptr<const FileModel> model;
    const Status status = FileModel::load_bytes(bytes.data(), n, &model);
    REQUIRE(status.ok() == (model != nullptr));
    return status;
}

bool is_file_error(Code code) {
    return code == Code::not_a_model || code == Code::truncated || code == Code::bad_version ||
           code == Code::corrupt_model || code == Code::bad_metadata || code == Code::missing_key ||
           code == Code::unsupported_model || code == Code::missing_tensor || code == Code::shape_mismatch ||
           code == Code::bad_tokenizer;
}

}  // namespace

TEST_CASE("the bundled model is refused at every shorter length of its header") {
    const Bytes whole = bundled_model();
    for (std::size_t n = 0; n <= bundled_header_bytes; n++) {
        const Status status = load_prefix(whole, n);
        CAPTURE(n, status.message());
        REQUIRE((status.code() == Code::truncated || (n < 4 && status.code() == Code::not_a_model)));
    }
    for (std::size_t n = bundled_header_bytes; n < whole.size(); n += 9973) {
        REQUIRE(load_prefix(whole, n).code() == Code::truncated);
    }
    CHECK(load_prefix(whole, whole.size() - 1).code() == Code::truncated);
    CHECK(load_prefix(whole, whole.size()).ok());
}

TEST_CASE("a small model in memory of its exact size is refused at every shorter length") {
    const Bytes whole = sound().write();
    for (std::size_t n = 0; n < whole.size(); n += n < 12000 ? 7 : 101) {
        const Status status =
            load_status(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)));
        REQUIRE(is_file_error(status.code()));
    }
}

namespace {

// Changes up to three bytes of a file again and again, most of them in its header; what still loads is run
// now and then. Returns how many loaded.
int run_mutations(const GgufWriter& file, int n_rounds, unsigned seed) {
    std::size_t header_bytes = 0;
    const Bytes whole = file.write(&header_bytes);
    std::mt19937 random(seed);
    int n_loaded = 0;
    for (int round = 0; round < n_rounds; round++) {
        Bytes changed = whole;
        const std::size_t n_changes = 1 + random() % 3;
        for (std::size_t i = 0; i < n_changes; i++) {
            const std::size_t at = random() % (round % 8 == 0 ? whole.size() : header_bytes);
            const std::uint8_t values[] = {0,
                                           1,
                                           0x7f,
                                           0x80,
                                           0xff,
                                           static_cast<std::uint8_t>(random()),
                                           static_cast<std::uint8_t>(changed[at] ^ 1u << random() % 8)};
            changed[at] = values[random() % std::size(values)];
        }
        const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[changed.size()]);
        std::copy(changed.begin(), changed.end(), exact.get());
        const long before = count_bytes();
        reset_peak();
        std::shared_ptr<const FileModel> model;
        const Status status = FileModel::load_bytes(exact.get(), changed.size(), &model);
        CAPTURE(round, status.message());
        REQUIRE(peak_bytes() - before < 4L << 20);
        REQUIRE((status.ok() || is_file_error(status.code())));
        if (!status.ok()) continue;
        n_loaded++;
        if (n_loaded % 16 != 0) continue;
        SessionConfig config;
        REQUIRE(parse_spec("f16", &config.spec).ok());
        config.n_ctx = 8;
        std::unique_ptr<Session> session;
        if (!Session::create(model, config, serial_executor(), &session).ok()) continue;
        const Token tokens[] = {1, 260, 3};
        const Status fed = session->prefill(tokens, 3);
        REQUIRE((fed.ok() || fed.code() == Code::non_finite || fed.code() == Code::not_representable));
    }
    return n_loaded;
}

}  // namespace

TEST_CASE("a changed byte gives a named error or a model that runs without harm") {
    constexpr int n_rounds = 6000;
    const int n_loaded = run_mutations(sound(), n_rounds, 1);
    CHECK(n_loaded > n_rounds / 10);
    CHECK(n_loaded < n_rounds * 9 / 10);
}

TEST_CASE("a changed byte of any family gives a named error or a model that runs without harm") {
    constexpr int n_rounds = 600;
    unsigned seed = 2;
    for (const GgufWriter& file : every_family()) {
        const int n_loaded = run_mutations(file, n_rounds, seed++);
        CHECK(n_loaded > n_rounds / 10);
        CHECK(n_loaded < n_rounds * 9 / 10);
    }
}

TEST_CASE("without memory, loading a model of any family fails cleanly at every allocation") {
    for (const GgufWriter& file : every_family()) {
        const Bytes bytes = file.write();
        std::shared_ptr<const FileModel> model;
        for (long n = 0; model == nullptr; n++) {
            REQUIRE(n < 10000);
            Status status;
            {
                const RefuseAfter refuse(n);
                status = guarded([&] { return FileModel::load_bytes(bytes.data(), bytes.size(), &model); });
            }
            REQUIRE((status.ok() || status.code() == Code::out_of_memory));
            REQUIRE(status.ok() == (model != nullptr));
        }
    }
}
