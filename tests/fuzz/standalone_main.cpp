// Runs a fuzz target without a fuzzing engine: `target FILE...` replays files, `target N SEED_FILE...` runs N
// seeded mutations of the files. Every input lies in memory of its exact size.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes);
// Of targets that know what their files are made of (mutate_gguf.cpp).
[[gnu::weak]] bool mutate_tensors(std::uint8_t* data, std::size_t n_bytes, std::uint32_t seed);

namespace {

using Bytes = std::vector<std::uint8_t>;

bool read_file(const char* path, Bytes* out) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) return false;
    std::uint8_t buffer[65536];
    for (std::size_t n; (n = std::fread(buffer, 1, sizeof(buffer), file)) > 0;) {
        out->insert(out->end(), buffer, buffer + n);
    }
    std::fclose(file);
    return true;
}

void run(const Bytes& input) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[input.size()]);
    if (!input.empty()) std::memcpy(exact.get(), input.data(), input.size());
    LLVMFuzzerTestOneInput(exact.get(), input.size());
}

// One change of the kinds a fuzzing engine makes. Most go to the front, where headers are.
void mutate(Bytes& bytes, std::mt19937& random) {
    if (bytes.empty()) bytes.push_back(static_cast<std::uint8_t>(random()));
    const std::size_t n = bytes.size();
    const std::size_t at = random() % (random() % 4 == 0 ? n : n < 4096 ? n : 4096);
    const std::size_t length = 1 + random() % 16;
    const std::uint64_t numbers[] = {0,          1,         255,        65536,   0x7fffffff,
                                     0xffffffff, INT64_MAX, UINT64_MAX, random()};
    switch (random() % 6) {
        case 0:
            bytes[at] ^= static_cast<std::uint8_t>(1u << random() % 8);
            break;
        case 1:
            bytes[at] = static_cast<std::uint8_t>(random());
            break;
        case 2: {  // a number of four or eight bytes
            const std::uint64_t number = numbers[random() % 9];
            const std::size_t width = random() % 2 == 0 ? 4 : 8;
            if (at + width <= n) std::memcpy(bytes.data() + at, &number, width);
            break;
        }
        case 3:
            bytes.resize(random() % 2 == 0 ? at : n - random() % (n < 64 ? n : 64));
            break;
        case 4: {  // a piece of it once more
            const Bytes piece(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                              bytes.begin() + static_cast<std::ptrdiff_t>(at + length < n ? at + length : n));
            bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), piece.begin(), piece.end());
            break;
        }
        default:
            bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                        bytes.begin() + static_cast<std::ptrdiff_t>(at + length < n ? at + length : n));
    }
}

}  // namespace

int main(int argc, char** argv) {
    int first = 1;
    long n_rounds = 0;
    if (argc > 1 && std::strspn(argv[1], "0123456789") == std::strlen(argv[1])) {
        n_rounds = std::strtol(argv[1], nullptr, 10);
        first = 2;
    }
    std::vector<Bytes> seeds;
    for (int i = first; i < argc; i++) {
        Bytes bytes;
        if (!read_file(argv[i], &bytes)) {
            std::fprintf(stderr, "cannot read %s\n", argv[i]);
            return 2;
        }
        run(bytes);
        seeds.push_back(std::move(bytes));
    }
    if (seeds.empty()) {
        std::fprintf(stderr, "usage: %s [ROUNDS] FILE...\n", argv[0]);
        return 2;
    }
    std::mt19937 random(1);
    for (long round = 0; round < n_rounds; round++) {
        Bytes input = seeds[static_cast<std::size_t>(random()) % seeds.size()];
        const bool by_structure = mutate_tensors != nullptr && round % 2 == 0;
        if (by_structure)
            (void)mutate_tensors(input.data(), input.size(), static_cast<std::uint32_t>(random()));
        for (std::size_t n = by_structure ? round / 2 % 2 : 1 + random() % 4; n > 0; n--) {
            mutate(input, random);
        }
        run(input);
    }
    std::printf("%zu files, %ld mutations: no failure\n", seeds.size(), n_rounds);
    return 0;
}
