// The container: header, strings, values, tensor infos.
#include "hostile/hostile.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

constexpr std::uint64_t huge = std::uint64_t{1} << 62;

Bytes header(std::uint64_t n_tensors, std::uint64_t n_values, std::uint32_t version = 3) {
    Bytes out = {'G', 'G', 'U', 'F'};
    put(out, version);
    put(out, n_tensors);
    put(out, n_values);
    return out;
}

// A file of one metadata value given byte by byte, then `n_padding` zeros.
Bytes with_value(std::string_view key, std::uint32_t type, const Bytes& payload, std::size_t n_padding = 64) {
    Bytes out = header(0, 1);
    put_text(out, key);
    put(out, type);
    out.insert(out.end(), payload.begin(), payload.end());
    out.resize(out.size() + n_padding);
    return out;
}

template <class... T>
Bytes bytes(T... values) {
    Bytes out;
    (put(out, values), ...);
    return out;
}

struct Info {
    std::string name = "a";
    std::vector<std::uint64_t> dims = {8};
    std::uint32_t type = gguf_f32;
    std::uint64_t offset = 0;
    std::uint32_t n_dims = 0;  // 0: dims.size()
};

// A file of these tensors with `n_data` bytes of data.
Bytes with_tensors(const std::vector<Info>& infos, std::size_t n_data) {
    Bytes out = header(infos.size(), 0);
    for (const Info& info : infos) {
        put_text(out, info.name);
        put(out, info.n_dims != 0 ? info.n_dims : static_cast<std::uint32_t>(info.dims.size()));
        for (const std::uint64_t dim : info.dims) {
            put(out, dim);
        }
        put(out, info.type);
        put(out, info.offset);
    }
    out.resize((out.size() + 31) / 32 * 32 + n_data);
    return out;
}

// What a sound container without any metadata is refused for.
const char* const sound_container = "missing_key";

}  // namespace

TEST_CASE("a sound file loads") {
    CHECK(code_of(sound()) == "ok");
    CHECK(code_of(header(0, 0)) == sound_container);
    CHECK(code_of(with_value("a", 4, bytes(1u))) == sound_container);
    CHECK(code_of(with_tensors({{}}, 32)) == sound_container);
}

TEST_CASE("files shorter than a header are refused") {
    const Bytes whole = header(0, 0);
    for (std::size_t n = 0; n < whole.size(); n++) {
        CAPTURE(n);
        CHECK(code_of(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n))) ==
              (n < 4 ? "not_a_model" : "truncated"));
    }
}

TEST_CASE("other magics, versions and byte orders are refused by name") {
    for (const char* magic : {"GGML", "FUGG", "GGUf", "\0\0\0\0"}) {
        Bytes file = header(0, 0);
        std::copy(magic, magic + 4, file.begin());
        CHECK(code_of(file) == "not_a_model");
    }
    for (const std::uint32_t version : {0u, 1u, 4u, 0xffffffffu, 0x03000000u, 0x02000000u}) {
        CHECK(code_of(header(0, 0, version)) == "bad_version");
    }
    CHECK(std::string(load_status(header(0, 0, 0x03000000)).message()).find("big-endian") !=
          std::string::npos);
}

TEST_CASE("counts that cannot be are refused before anything is reserved for them") {
    for (const std::uint64_t count :
         {std::uint64_t{65537}, std::uint64_t{1000000000}, huge, std::uint64_t{INT64_MAX}, UINT64_MAX,
          UINT64_MAX / 56, UINT64_MAX / 33 + 1}) {
        CAPTURE(count);
        Bytes file = header(count, 0);
        file.resize(file.size() + 100);
        CHECK(code_of(file, {20.0, 1L << 20}) == "corrupt_model");
        file = header(0, count);
        file.resize(file.size() + 100);
        CHECK(code_of(file, {20.0, 1L << 20}) == "corrupt_model");
    }
    for (const std::uint64_t count : {4, 100, 65536}) {
        Bytes file = header(count, 0);
        file.resize(file.size() + 100);
        CHECK(code_of(file, {20.0, 1L << 20}) == "truncated");
        file = header(0, 2 * count);
        file.resize(file.size() + 100);
        CHECK(code_of(file, {20.0, 1L << 20}) == (2 * count > 65536 ? "corrupt_model" : "truncated"));
    }
}

TEST_CASE("tens of thousands of keys or tensors load in no time") {
    Bytes file = header(0, 65536);
    for (int i = 0; i < 65536; i++) {
        put_text(file, std::to_string(i));
        put(file, 0u);
        put(file, std::uint8_t{1});
    }
    CHECK(code_of(file, {20.0, 32L << 20}) == sound_container);

    std::vector<Info> infos(65536);
    for (std::size_t i = 0; i < infos.size(); i++) {
        infos[i].name = std::to_string(i);
        infos[i].offset = 32 * i;
    }
    CHECK(code_of(with_tensors(infos, 32 * infos.size()), {20.0, 32L << 20}) == sound_container);
}

TEST_CASE("key lengths beyond the file are refused") {
    for (const std::uint64_t length :
         {UINT64_MAX, std::uint64_t{1} << 63, std::uint64_t{77}, UINT64_MAX - 31}) {
        Bytes file = header(0, 1);
        put(file, length);
        file.resize(file.size() + 76);
        CHECK(code_of(file) == "truncated");
    }
}

TEST_CASE("keys that are empty, too long or no ASCII are refused") {
    for (const std::string& key :
         {std::string(), std::string("a\0b", 3), std::string("\xff\xfe"), std::string("a b"),
          std::string("a\n"), std::string("\x1b[31m"), std::string(65536, 'k')}) {
        CHECK(code_of(with_value(key, 4, bytes(1u))) == "corrupt_model");
    }
    CHECK(code_of(with_value(std::string(65535, 'k'), 4, bytes(1u))) == sound_container);
}

TEST_CASE("a key that stands twice is refused, whatever its types") {
    for (const std::uint32_t type : {4u, 5u, 6u}) {
        Bytes file = header(0, 3);
        put_text(file, "key");
        put(file, 4u);
        put(file, 1u);
        put_text(file, "another");
        put(file, 4u);
        put(file, 1u);
        put_text(file, "key");
        put(file, type);
        put(file, 1u);
        CHECK(code_of(file) == "corrupt_model");
    }
}

TEST_CASE("unknown value types are refused") {
    for (const std::uint32_t type : {13u, 14u, 255u, 0x7fffffffu, 0xffffffffu}) {
        CHECK(code_of(with_value("a", type, {})) == "corrupt_model");
        CHECK(code_of(with_value("a", gguf_array, bytes(type, std::uint64_t{1}))) == "corrupt_model");
        CHECK(code_of(with_value("a", gguf_array, bytes(type, std::uint64_t{0}))) == "corrupt_model");
    }
}

TEST_CASE("arrays of arrays are refused at any depth") {
    Bytes payload;
    for (int depth = 0; depth < 10000; depth++) {
        put(payload, gguf_array);
        put(payload, std::uint64_t{1});
    }
    CHECK(code_of(with_value("a", gguf_array, payload)) == "unsupported_model");
}

TEST_CASE("array lengths beyond the file are refused before they are reserved") {
    for (std::uint32_t type = 0; type <= 12; type++) {
        if (type == gguf_array) continue;
        for (const std::uint64_t n : {std::uint64_t{1} << 61, std::uint64_t{1} << 30, std::uint64_t{1} << 60,
                                      UINT64_MAX, UINT64_MAX / 8, UINT64_MAX / 4 + 1, std::uint64_t{1000}}) {
            CAPTURE(type, n);
            CHECK(code_of(with_value("a", gguf_array, bytes(type, n)), {20.0, 1L << 20}) == "truncated");
        }
    }
}

TEST_CASE("the strings of an array must all end within the file") {
    for (const std::uint64_t last : {std::uint64_t{1}, UINT64_MAX, std::uint64_t{1} << 63, huge}) {
        const Bytes payload = bytes(gguf_string, std::uint64_t{2}, std::uint64_t{0}, last);
        CHECK(code_of(with_value("a", gguf_array, payload, 0)) == "truncated");
    }
    CHECK(code_of(with_value("a", gguf_string, bytes(std::uint64_t{65}))) == "truncated");
    CHECK(code_of(with_value("a", gguf_string, bytes(std::uint64_t{64}))) == sound_container);
}

TEST_CASE("booleans are 0 or 1") {
    for (const std::uint8_t value : {0, 1, 2, 255}) {
        const char* expected = value < 2 ? sound_container : "corrupt_model";
        CHECK(code_of(with_value("a", 7, bytes(value))) == expected);
        CHECK(code_of(with_value("a", gguf_array,
                                 bytes(7u, std::uint64_t{3}, std::uint8_t{1}, value, std::uint8_t{0}))) ==
              expected);
    }
}

TEST_CASE("the alignment is a power of two in u32, and not a large one") {
    for (const std::uint32_t alignment : {0u, 13u, 24u, 131072u, 0x80000000u, 0xffffffffu}) {
        GgufWriter file = sound();
        file.set("general.alignment", alignment);
        CHECK(code_of(file) == "bad_metadata");
    }
    const auto refused = [](auto value) {
        GgufWriter file = sound();
        file.set("general.alignment", value);
        return code_of(file) == "bad_metadata";
    };
    CHECK(refused(std::int32_t{32}));
    CHECK(refused(std::uint64_t{32}));
    CHECK(refused("32"));
    CHECK(refused(32.0f));
    GgufWriter array = sound();
    array.set_array("general.alignment", std::vector<std::uint32_t>{32});
    CHECK(code_of(array) == "bad_metadata");
    for (const std::uint32_t alignment : {1u, 2u, 64u, 65536u}) {
        ModelShape shape;
        shape.alignment = alignment;
        CHECK(code_of(ModelMaker(shape).file) == "ok");
    }
}

TEST_CASE("tensor names are 1 to 63 ASCII characters and different") {
    for (const std::string& name : {std::string(), std::string(64, 'n'), std::string("a\0", 2),
                                    std::string("\x80"), std::string("a b")}) {
        CHECK(code_of(with_tensors({{name}}, 32)) == "corrupt_model");
    }
    CHECK(code_of(with_tensors({{std::string(63, 'n')}}, 32)) == sound_container);
    CHECK(code_of(with_tensors({{"a"}, {"b", {8}, gguf_f32, 32}, {"a", {8}, gguf_f32, 64}}, 96)) ==
          "corrupt_model");
    Bytes file = header(1, 0);
    put(file, UINT64_MAX);
    file.resize(file.size() + 64);
    CHECK(code_of(file) == "truncated");
}

TEST_CASE("tensors have one to four dimensions") {
    for (const std::uint32_t n_dims : {5u, 0x80000000u, 0xffffffffu}) {
        CHECK(code_of(with_tensors({{"a", {1, 1, 1, 1, 8}, gguf_f32, 0, n_dims}}, 64)) == "corrupt_model");
    }
    Bytes none = header(1, 0);
    put_text(none, "a");
    put(none, 0u);
    none.resize(none.size() + 64);
    CHECK(code_of(none) == "corrupt_model");
    CHECK(code_of(with_tensors({{"a", {1, 2, 2, 2}}}, 32)) == sound_container);
}

TEST_CASE("dimensions whose product cannot be are refused, factor by factor") {
    const std::uint64_t half = std::uint64_t{1} << 32;
    const std::vector<std::vector<std::uint64_t>> corrupt = {
        {0},  // no elements
        {8, 0},
        {0, UINT64_MAX},  // division by zero in an overflow check
        {UINT64_MAX},     // -1
        {std::uint64_t{1} << 63},
        {half, half},  // product 0
        {half, half, 1, 8},
        {half, half / 2 + 1},  // wraps to a positive number
        {huge, 4, 4},
        {half * 1024 + 1, half},  // (2^42 + 1) as a second dimension wraps the stride
        {3, 0x5555555555555556},  // 2
        {INT64_MAX, 2},
    };
    for (const auto& dims : corrupt) {
        CAPTURE(dims);
        CHECK(code_of(with_tensors({{"a", dims}}, 64)) == "corrupt_model");
    }
    // The elements can be counted, the bytes cannot, or not in this file.
    CHECK(code_of(with_tensors({{"a", {huge}}}, 64)) == "corrupt_model");
    CHECK(code_of(with_tensors({{"a", {huge / 4}}}, 64)) == "truncated");
    CHECK(code_of(with_tensors({{"a", {INT64_MAX / 32 * 32}, gguf_q8_0}}, 64)) == "corrupt_model");
}

TEST_CASE("rows are whole blocks of every type, and blocks are as long as the type says") {
    for (const TensorType& type : tensor_types) {
        CAPTURE(type.name);
        const std::uint64_t n = type.block;
        if (n > 1) {
            for (const std::uint64_t n_cols : {std::uint64_t{1}, n - 1, n + 1, n + n / 2}) {
                CHECK(code_of(with_tensors({{"a", {n_cols}, type.id}}, 65536)) == "corrupt_model");
                CHECK(code_of(with_tensors({{"a", {n_cols, n}, type.id}}, 65536)) == "corrupt_model");
            }
        }
        CHECK(code_of(with_tensors({{"a", {n, 3}, type.id}}, 3 * type.block_bytes)) == sound_container);
        CHECK(code_of(with_tensors({{"a", {n, 3}, type.id}}, 3 * type.block_bytes - 1)) == "truncated");
        // Elements that can be counted, in bytes that can not or are not there.
        const std::uint64_t most = std::uint64_t{INT64_MAX} / n * n;
        CHECK(code_of(with_tensors({{"a", {most}, type.id}}, 64)) ==
              (type.block_bytes > n ? "corrupt_model" : "truncated"));
        CHECK(code_of(with_tensors({{"a", {n, huge / n}, type.id}}, 64)) != sound_container);
    }
}

TEST_CASE("tensor types that are not run are refused by name, unknown ones by number, with what is known") {
    const std::pair<std::uint32_t, const char*> named[] = {
        {4, "Q4_2"},        {5, "Q4_3"},   {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"},
        {19, "IQ1_S"},      {26, "I32"},   {28, "F64"},   {29, "IQ1_M"}, {31, "Q4_0_4_4"},
        {36, "IQ4_NL_4_4"}, {34, "TQ1_0"}, {40, "NVFP4"}, {41, "Q1_0"},  {42, "Q2_0"}};
    const std::string longest(max_tensor_name, 'n');
    for (const auto& [type, name] : named) {
        const Status status = load_status(with_tensors({{longest, {256}, type}}, 4096));
        CAPTURE(status.message());
        CHECK(status.code() == Code::unsupported_model);
        CHECK(mentions(status, name));
        CHECK(mentions(status, "TQ2_0"));  // the last of those that are known
    }
    for (const std::uint32_t type : {43u, 44u, 1000u, 0x7fffffffu, 0xffffffffu}) {
        const Status status = load_status(with_tensors({{longest, {256}, type}}, 4096));
        CAPTURE(status.message());
        CHECK(status.code() == Code::unsupported_model);
        CHECK(mentions(status, std::to_string(type)));
        CHECK(mentions(status, "TQ2_0"));
    }
}

TEST_CASE("tensor data lie within the file, aligned, and apart from one another") {
    CHECK(code_of(with_tensors({{"a", {8}, gguf_f32, 16}}, 64)) == "corrupt_model");
    CHECK(code_of(with_tensors({{"a", {8}, gguf_f32, 1}}, 64)) == "corrupt_model");
    for (const std::uint64_t offset : {std::uint64_t{32}, std::uint64_t{1} << 40, UINT64_MAX - 31,
                                       UINT64_MAX - 63, std::uint64_t{1} << 63, UINT64_MAX / 32 * 32}) {
        CAPTURE(offset);
        CHECK(code_of(with_tensors({{"a", {8}, gguf_f32, offset}}, 32)) == "truncated");
    }
    CHECK(code_of(with_tensors({{"a"}, {"b"}}, 64)) == "corrupt_model");
    CHECK(code_of(with_tensors({{"a", {64}}, {"b", {8}, gguf_f32, 224}}, 512)) == "corrupt_model");
    CHECK(code_of(with_tensors({{"b", {8}, gguf_f32, 224}, {"a", {64}}}, 512)) == "corrupt_model");
    // Gaps and any order do no harm.
    CHECK(code_of(with_tensors({{"a", {8}, gguf_f32, 96}, {"b", {8}}}, 128)) == sound_container);
}

TEST_CASE("sizes whose sum wraps are refused") {
    const std::uint64_t n = (std::uint64_t{1} << 61) - 16;  // F32: 0x7fff...c0 bytes
    CHECK(code_of(with_tensors({{"a", {n / 4 * 4}}, {"b", {n / 4 * 4}}}, 64)) == "truncated");
    CHECK(code_of(with_tensors({{"a", {(INT64_MAX - 3) / 4}}}, 64)) == "truncated");
    CHECK(code_of(with_tensors({{"a", {INT64_MAX}, gguf_f16}}, 64)) == "corrupt_model");
}

TEST_CASE("a file one byte short is refused and trailing bytes are ignored") {
    ModelShape shape;
    shape.alignment = 1;
    Bytes file = ModelMaker(shape).file.write();
    REQUIRE(code_of(file) == "ok");
    file.push_back(0);
    CHECK(code_of(file) == "ok");
    file.resize(file.size() - 2);
    CHECK(code_of(file) == "truncated");
}
