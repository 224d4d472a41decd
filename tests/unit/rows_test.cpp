// Rows, queries and outputs as engines have them: types and strides.
#include <limits>

#include "support/layouts.hpp"
#include "unit/caches.hpp"

namespace gearkv::testing {
namespace {

constexpr std::uint32_t n_kv_heads = 2, n_heads = 6, key_dim = 72, value_dim = 40;

std::vector<float> numbers(std::size_t n_tokens, std::size_t heads, std::size_t dim, unsigned seed,
                           ElementType type) {
    return rounded(to_floats(structured(n_tokens, heads, dim, seed)), type);
}

Queries plain_queries(const std::vector<float>& q, std::uint32_t n_queries) {
    return {q.data(), n_heads * key_dim, key_dim, n_queries, n_heads, 0.1f, true};
}

std::vector<float> attend_floats(Cache* cache, const Queries& queries) {
    std::vector<float> out(std::size_t{queries.n_queries} * queries.n_heads * value_dim, -1.0f);
    const Status status = cache->attend(0, queries, out.data(), out.size(), serial_executor());
    INFO(status.message());
    REQUIRE(status.ok());
    return out;
}

void compare_with_floats(const char* spec) {
    constexpr std::size_t n_prompt = 150, n_more = 70;
    const ElementType type = GENERATE(ElementType::f32, ElementType::f16, ElementType::bf16);
    CAPTURE(spec, static_cast<int>(type));
    const auto k = numbers(n_prompt + n_more, n_kv_heads, key_dim, 1, type),
               v = numbers(n_prompt + n_more, n_kv_heads, value_dim, 5, type),
               q = numbers(3, n_heads, key_dim, 9, type);
    CacheConfig config = make_config(spec, n_kv_heads, key_dim, value_dim);
    config.error_every = 1;
    const auto expected = make_cache(config);
    const auto part = [](const std::vector<float>& x, std::size_t first, std::size_t n, std::size_t row) {
        const auto from = x.begin() + static_cast<std::ptrdiff_t>(first * row);
        return std::vector<float>(from, from + static_cast<std::ptrdiff_t>(n * row));
    };
    // One order for keys and the next for values.
    for (std::size_t i = 0; i <= std::size(all_orders); ++i) {
        const bool is_plain = i == 0;
        const Order key_order = all_orders[i % std::size(all_orders)],
                    value_order = all_orders[(i + 1) % std::size(all_orders)];
        CAPTURE(is_plain, static_cast<int>(key_order), static_cast<int>(value_order));
        const auto other = is_plain ? nullptr : make_cache(config);
        Cache* cache = is_plain ? expected.get() : other.get();
        for (std::size_t first = 0, n = n_prompt; first < n_prompt + n_more; first += n, n = n_more / 2) {
            const auto keys = part(k, first, n, n_kv_heads * key_dim),
                       values = part(v, first, n, n_kv_heads * value_dim);
            const Laid laid_keys(keys, n_kv_heads, key_dim, type, key_order),
                laid_values(values, n_kv_heads, value_dim, type, value_order);
            const Status status = is_plain ? cache->append(0, {keys.data(), n_kv_heads * key_dim, key_dim},
                                                           {values.data(), n_kv_heads * value_dim, value_dim},
                                                           static_cast<std::uint32_t>(n), serial_executor())
                                           : cache->append(0, laid_keys.rows, laid_values.rows,
                                                           static_cast<std::uint32_t>(n), serial_executor());
            INFO(status.message());
            REQUIRE(status.ok());
            const Laid laid(q, n_heads, key_dim, type, key_order);
            const Queries plain = plain_queries(q, 3);
            (void)attend_floats(cache, is_plain ? plain : laid.queries(plain));
        }
        REQUIRE(cache->compress(0, serial_executor()).ok());
        if (is_plain) continue;
        CHECK(cache->stats().bytes.bytes == expected->stats().bytes.bytes);
        const auto found_rows = read_all(cache), expected_rows = read_all(expected.get());
        CHECK(found_rows.first.data == expected_rows.first.data);
        CHECK(found_rows.second.data == expected_rows.second.data);
        CHECK(attend_floats(cache, plain_queries(q, 3)) ==
              attend_floats(expected.get(), plain_queries(q, 3)));
        LayerStats found, wanted;
        REQUIRE((cache->layer_stats(0, &found).ok() && expected->layer_stats(0, &wanted).ok()));
        CHECK(found.output_error == wanted.output_error);
    }
}

TEST_CASE("rows of any type and stride give the cache of the same floats, bit for bit", "[rows]") {
    compare_with_floats(GENERATE("f16", "f32", "gear-4", "paper:gear-4:nb=64", "kcvt-4:nb=64"));
}

TEST_CASE("so they do where rates are chosen", "[rows][rates]") {
    compare_with_floats("auto:3");
}

void compare_queries_and_outputs(std::size_t n_tokens, std::uint32_t heads) {
    const auto k = numbers(n_tokens, heads, key_dim, 1, ElementType::f32),
               v = numbers(n_tokens, heads, value_dim, 2, ElementType::f32);
    CacheConfig config = make_config("q8", heads, key_dim, value_dim, 5000);
    std::unique_ptr<Workspace> workspace;
    REQUIRE(Workspace::create(default_allocator(), &workspace).ok());
    config.workspace = workspace.get();
    const auto cache = make_cache(config);
    REQUIRE(cache
                ->append(0, {k.data(), heads * key_dim, key_dim}, {v.data(), heads * value_dim, value_dim},
                         static_cast<std::uint32_t>(n_tokens), serial_executor())
                .ok());
    std::unique_ptr<Cache> fork;
    REQUIRE(cache->fork(&fork).ok());
    for (const std::uint32_t n_queries : {1u, 5u}) {
        for (const ElementType type : all_types) {
            const auto q = numbers(n_queries, n_heads, key_dim, 3, type);
            const Queries plain = plain_queries(q, n_queries);
            const auto expected = attend_floats(cache.get(), plain);
            for (const Order order : all_orders) {
                CAPTURE(n_tokens, n_queries, static_cast<int>(type), static_cast<int>(order));
                const Laid laid(q, n_heads, key_dim, type, order);
                CHECK(attend_floats(cache.get(), laid.queries(plain)) == expected);
                for (const ElementType out_type : all_types) {
                    Queries queries = laid.queries(plain);
                    queries.out_type = out_type;
                    std::vector<unsigned char> out(expected.size() * bytes_of(out_type), 0xff), other = out;
                    REQUIRE(cache->attend(0, queries, out.data(), expected.size(), serial_executor()).ok());
                    CHECK(decoded(out, out_type) == rounded(expected, out_type));
                    const AttendRequest requests[] = {{cache.get(), queries, out.data(), expected.size()},
                                                      {fork.get(), queries, other.data(), expected.size()}};
                    REQUIRE(Cache::attend_batch(0, requests, 2, serial_executor()).ok());
                    CHECK((decoded(out, out_type) == rounded(expected, out_type) && out == other));
                }
            }
        }
    }
}

TEST_CASE("queries of any type and stride are those floats, and outputs are rounded ones", "[rows]") {
    compare_queries_and_outputs(300, n_kv_heads);
}

// Of 4,000 tokens with one KV head the parts are attended apart and put together, by code that knows no
// level.
TEST_CASE("so they are where parts are put together", "[rows][once]") {
    compare_queries_and_outputs(4000, 1);
}

// The outputs of `like` at the places of rows.
Queries with_outputs(Queries like, const Rows& rows) {
    like.out_type = rows.type;
    like.out_query_stride = rows.token_stride;
    like.out_head_stride = rows.head_stride;
    like.out_channel_stride = rows.channel_stride;
    return like;
}
OutRows places(std::vector<unsigned char>* bytes, const Rows& rows) {
    return {bytes->data(),     bytes->size() / bytes_of(rows.type),
            rows.token_stride, rows.head_stride,
            rows.type,         rows.channel_stride};
}

void compare_places(std::size_t n_tokens, std::uint32_t heads) {
    const auto k = numbers(n_tokens, heads, key_dim, 1, ElementType::f32),
               v = numbers(n_tokens, heads, value_dim, 2, ElementType::f32),
               q = numbers(5, n_heads, key_dim, 3, ElementType::f32);
    const auto cache = make_cache(make_config("q8", heads, key_dim, value_dim, 5000));
    REQUIRE(cache
                ->append(0, {k.data(), heads * key_dim, key_dim}, {v.data(), heads * value_dim, value_dim},
                         static_cast<std::uint32_t>(n_tokens), serial_executor())
                .ok());
    const Queries plain = plain_queries(q, 5);
    const auto expected = attend_floats(cache.get(), plain);
    const std::size_t n_read = 170, at = n_tokens - 200;  // of blocks and of the buffer
    std::vector<float> keys(n_read * heads * key_dim), values(n_read * heads * value_dim);
    REQUIRE(cache->read(0, at, n_read, keys.data(), keys.size(), values.data(), values.size()).ok());
    for (const ElementType type : all_types) {
        for (const Order order : all_orders) {
            CAPTURE(n_tokens, static_cast<int>(type), static_cast<int>(order));
            const Laid wanted(expected, n_heads, value_dim, type, order);
            std::vector<unsigned char> out(wanted.bytes.size(), 0xff);
            const Status status = cache->attend(0, with_outputs(plain, wanted.rows), out.data(),
                                                out.size() / bytes_of(type), serial_executor());
            INFO(status.message());
            REQUIRE(status.ok());
            CHECK(out == wanted.bytes);

            const Laid wanted_keys(keys, heads, key_dim, type, order),
                wanted_values(values, heads, value_dim, type, order);
            std::vector<unsigned char> read_keys(wanted_keys.bytes.size(), 0xff),
                read_values(wanted_values.bytes.size(), 0xff);
            const OutRows key_rows = places(&read_keys, wanted_keys.rows),
                          value_rows = places(&read_values, wanted_values.rows);
            REQUIRE(cache->read(0, at, n_read, &key_rows, nullptr).ok());
            REQUIRE(cache->read(0, at, n_read, nullptr, &value_rows).ok());
            CHECK(read_keys == wanted_keys.bytes);
            CHECK(read_values == wanted_values.bytes);
        }
    }
}

TEST_CASE("outputs go where their strides say, and nowhere else", "[rows]") {
    compare_places(300, n_kv_heads);
}

TEST_CASE("so they do where parts are put together", "[rows][once]") {
    compare_places(4000, 1);
}

TEST_CASE("outputs without room, and those that overlap, are refused untouched", "[rows]") {
    const auto cache = make_cache(make_config("f16", n_kv_heads, key_dim, value_dim));
    const auto k = numbers(40, n_kv_heads, key_dim, 1, ElementType::f32),
               v = numbers(40, n_kv_heads, value_dim, 2, ElementType::f32),
               q = numbers(2, n_heads, key_dim, 3, ElementType::f32);
    REQUIRE(cache
                ->append(0, {k.data(), n_kv_heads * key_dim, key_dim},
                         {v.data(), n_kv_heads * value_dim, value_dim}, 40, serial_executor())
                .ok());
    constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
    // Two queries, six heads, 40 channels.
    const struct {
        std::size_t query, head, channel, n_least;  // 0: never
    } cases[] = {{0, 0, 1, 480},        {500, 0, 1, 740},     {0, 80, 2, 0},   {480, 80, 2, 959},
                 {481, 80, 2, 960},     {0, 39, 1, 0},        {239, 40, 1, 0}, {1, 80, 2, 480},
                 {40, 80, 1, 480},      {1, 2, 12, 480},      {0, 0, 0, 0},    {most, 40, 1, 0},
                 {240, most / 4, 1, 0}, {most, most, most, 0}};
    std::vector<float> out(1000);
    for (const auto& one : cases) {
        CAPTURE(one.query, one.head, one.channel);
        Queries queries = plain_queries(q, 2);
        queries.out_query_stride = one.query;
        queries.out_head_stride = one.head;
        queries.out_channel_stride = one.channel;
        std::fill(out.begin(), out.end(), 7.0f);
        const auto attend = [&](std::size_t n) {
            return cache->attend(0, queries, out.data(), n, serial_executor());
        };
        if (one.n_least > 0) CHECK(attend(one.n_least).ok());
        std::fill(out.begin(), out.end(), 7.0f);
        const Status status = attend(one.n_least == 0 ? out.size() : one.n_least - 1);
        CHECK(status.code() == Code::wrong_size);
        CHECK(std::string(status.message()).find("outputs of layer 0") != std::string::npos);
        CHECK(std::count(out.begin(), out.end(), 7.0f) == 1000);
        const OutRows rows = {out.data(), out.size(), one.query, one.head, ElementType::f32, one.channel};
        // Of two heads of 40 channels.
        if (one.n_least == 0 && one.query == most)
            CHECK(cache->read(0, 0, 2, nullptr, &rows).code() == Code::wrong_size);
    }
    OutRows rows = {out.data(), out.size(), 80, 40};
    CHECK(cache->read(0, 0, 12, nullptr, &rows).ok());
    CHECK(cache->read(0, 0, 13, nullptr, &rows).code() == Code::wrong_size);
    CHECK(cache->read(0, 39, 2, nullptr, &rows).code() == Code::wrong_size);
    rows.token_stride = 40;  // as long as a head
    CHECK(cache->read(0, 0, 2, nullptr, &rows).code() == Code::wrong_size);
    CHECK(cache->read(0, 0, 1, nullptr, &rows).ok());
    rows.data = nullptr;
    CHECK(cache->read(0, 0, 1, nullptr, &rows).code() == Code::invalid_argument);
    rows.data = out.data();
    rows.type = static_cast<ElementType>(9);
    CHECK(cache->read(0, 0, 1, nullptr, &rows).code() == Code::invalid_argument);
    CHECK(cache->read(0, 0, 1, static_cast<const OutRows*>(nullptr), nullptr).ok());
}

TEST_CASE("tokens are read in any type", "[rows]") {
    const char* spec = GENERATE("f16", "f32:sinks=3", "gear-4", "paper:gear-4:nb=64", "k=f32;v=q8:nb=64");
    CacheConfig config = make_config(spec, n_kv_heads, 64, 64);
    std::vector<double> turns(32, 0.01);
    config.rope = {turns.data(), 32, false};
    const auto cache = make_cache(config);
    const Tensor k = gaussian(200, n_kv_heads, 64, 1), v = gaussian(200, n_kv_heads, 64, 2);
    REQUIRE(append(cache.get(), k, v, 0, 200).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    REQUIRE(cache->remove(5, 20).ok());  // the keys behind have moved
    const std::size_t n = 171 * n_kv_heads * 64;
    std::vector<float> keys(n), values(n);
    REQUIRE(cache->read(0, 3, 171, keys.data(), n, values.data(), n).ok());
    for (const ElementType type : all_types) {
        CAPTURE(spec, static_cast<int>(type));
        std::vector<unsigned char> key_bytes(n * bytes_of(type)), value_bytes(n * bytes_of(type));
        REQUIRE(cache->read(0, 3, 171, key_bytes.data(), n, value_bytes.data(), n, type).ok());
        CHECK(decoded(key_bytes, type) == rounded(keys, type));
        CHECK(decoded(value_bytes, type) == rounded(values, type));
        CHECK(cache->read(0, 3, 171, key_bytes.data(), n - 1, nullptr, 0, type).code() == Code::wrong_size);
    }
}

TEST_CASE("blocks of rows of any type and stride have the same bytes", "[rows]") {
    struct Kind {
        TensorKind kind;
        TensorSpec spec;
    };
    const KvSpec trellis = spec_of("gear-4");
    const Kind kinds[] = {{TensorKind::key, make_spec(Backbone::kcvt, 4, 0.02f)},
                          {TensorKind::value, make_spec(Backbone::token, 8)},
                          {TensorKind::key, trellis.key},
                          {TensorKind::value, trellis.value},
                          {TensorKind::value, spec_of("f16").value},
                          {TensorKind::key, spec_of("f32").key}};
    for (const Kind& kind : kinds) {
        for (const ElementType type : all_types) {
            const auto x = numbers(130, n_kv_heads, key_dim, 7, type);
            const BlockShape shape = {kind.kind, 130, n_kv_heads, key_dim};
            const BlockOptions options = make_options(kind.spec, 4);
            BlockBytes bytes;
            REQUIRE(block_bytes(shape, options, &bytes).ok());
            const auto compressed = [&](const Rows& rows) {
                const AlignedBytes block(bytes.bytes);
                const Status status =
                    compress_block(block.bytes(), bytes.bytes, rows, shape, options, serial_executor());
                INFO(status.message());
                REQUIRE(status.ok());
                return std::vector<unsigned char>(block.bytes(), block.bytes() + bytes.bytes);
            };
            const auto expected = compressed({x.data(), n_kv_heads * key_dim, key_dim});
            for (const Order order : all_orders) {
                CAPTURE(static_cast<int>(kind.spec.backbone), static_cast<int>(type),
                        static_cast<int>(order));
                CHECK(compressed(Laid(x, n_kv_heads, key_dim, type, order).rows) == expected);
            }
        }
    }
}

TEST_CASE("what no cache can hold is found in rows of every type", "[rows]") {
    const auto cache = make_cache(make_config("f16", n_kv_heads, key_dim, value_dim));
    std::vector<float> k(40 * n_kv_heads * key_dim, 0.5f), v(40 * n_kv_heads * value_dim, 0.5f);
    const Laid values(v, n_kv_heads, value_dim, ElementType::f16, Order::packed);
    const struct {
        ElementType type;
        std::uint32_t bits;
        Code code;
    } bad[] = {{ElementType::f32, 0x7fc00000, Code::non_finite},
               {ElementType::f32, 0xff800000, Code::non_finite},
               {ElementType::f16, 0x7e00, Code::non_finite},
               {ElementType::f16, 0xfc00, Code::non_finite},
               {ElementType::f16, 0x7c01, Code::non_finite},
               {ElementType::bf16, 0x7f80, Code::non_finite},
               {ElementType::bf16, 0xff81, Code::non_finite},
               {ElementType::bf16, 0x4780, Code::not_representable},
               {ElementType::f32, 0x477fe100, Code::not_representable}};
    for (const auto& one : bad) {
        for (const Order order : all_orders) {
            for (const std::size_t at :
                 {std::size_t{0}, k.size() - 1, std::size_t{37 * n_kv_heads * key_dim + 100}}) {
                Laid keys(k, n_kv_heads, key_dim, one.type, order);
                const std::size_t token = at / (n_kv_heads * key_dim), head = at / key_dim % n_kv_heads;
                std::memcpy(
                    keys.bytes.data() + (token * keys.rows.token_stride + head * keys.rows.head_stride +
                                         at % key_dim * keys.rows.channel_stride) *
                                            bytes_of(one.type),
                    &one.bits, bytes_of(one.type));
                const Status status = cache->append(0, keys.rows, values.rows, 40, serial_executor());
                CAPTURE(static_cast<int>(one.type), static_cast<int>(order), at, status.message());
                CHECK(status.code() == one.code);
                const std::string place =
                    "keys of token " + std::to_string(token) + ", head " + std::to_string(head) + " ";
                CHECK(std::string(status.message()).find(place) == 0);
                CHECK(cache->n_tokens(0) == 0);
                if (one.code != Code::non_finite) continue;
                // The same as a query.
                std::vector<float> out(40 * n_kv_heads * value_dim, 7.0f);
                const Laid good(k, n_kv_heads, key_dim, one.type, order);
                const auto full = make_cache(make_config("f16", n_kv_heads, key_dim, value_dim));
                REQUIRE(full->append(0, good.rows, values.rows, 40, serial_executor()).ok());
                Queries queries;
                queries.n_queries = 40;
                queries.n_heads = n_kv_heads;
                queries.scale = 0.1f;
                CHECK(full->attend(0, keys.queries(queries), out.data(), out.size(), serial_executor())
                          .code() == Code::non_finite);
                CHECK(out == std::vector<float>(out.size(), 7.0f));
            }
        }
    }
}

TEST_CASE("types and strides that are none are refused", "[rows]") {
    const auto cache = make_cache(make_config("f16", 1, 8, 8));
    const std::vector<float> x(64, 1.0f);
    std::vector<float> out(8, 7.0f);
    const Rows good = {x.data(), 8, 8};
    const auto append_rows = [&](const Rows& keys, const Rows& values) {
        return cache->append(0, keys, values, 2, serial_executor());
    };
    Rows none = good, zero = good, null = good;
    none.type = static_cast<ElementType>(3);
    zero.channel_stride = 0;
    null.data = nullptr;
    CHECK(append_rows(none, good).code() == Code::invalid_argument);
    CHECK(std::string(append_rows(good, none).message()) == "type 3 of values, expected f32, f16 or bf16");
    CHECK(std::string(append_rows(zero, good).message()) == "channel stride 0 of keys, expected at least 1");
    CHECK(append_rows(good, zero).code() == Code::wrong_size);
    CHECK(append_rows(good, null).code() == Code::invalid_argument);
    CHECK(cache->n_tokens(0) == 0);
    REQUIRE(append_rows(good, good).ok());

    const auto attend_rows = [&](ElementType type, ElementType out_type, std::size_t stride) {
        Queries queries = {x.data(), 8, 8, 1, 1, 0.3f, true};
        queries.type = type;
        queries.out_type = out_type;
        queries.channel_stride = stride;
        const Status status = cache->attend(0, queries, out.data(), out.size(), serial_executor());
        CHECK((status.ok() || out == std::vector<float>(8, 7.0f)));
        return status.code();
    };
    constexpr auto f32 = ElementType::f32, other = static_cast<ElementType>(200);
    CHECK(attend_rows(other, f32, 1) == Code::invalid_argument);
    CHECK(attend_rows(f32, other, 1) == Code::invalid_argument);
    CHECK(attend_rows(f32, f32, 0) == Code::wrong_size);
    CHECK(cache->read(0, 0, 1, out.data(), 8, nullptr, 0, other).code() == Code::invalid_argument);
    CHECK(attend_rows(f32, f32, 1) == Code::ok);

    BlockBytes bytes;
    const BlockShape shape = {TensorKind::key, 2, 1, 8};
    const BlockOptions options = make_options(spec_of("f16").key);
    REQUIRE(block_bytes(shape, options, &bytes).ok());
    const AlignedBytes block(bytes.bytes);
    for (const auto& [rows, code] : {std::pair{none, Code::invalid_argument},
                                     {zero, Code::wrong_size},
                                     {null, Code::invalid_argument},
                                     {good, Code::ok}}) {
        CHECK(compress_block(block.bytes(), bytes.bytes, rows, shape, options, serial_executor()).code() ==
              code);
    }
}

TEST_CASE("what f16 cannot hold of an output is its largest number", "[rows]") {
    const auto cache = make_cache(make_config("f32", 1, 8, 8));
    const std::vector<float> k(8, 0.0f),
        v = {1e6f, -1e9f, 65520.0f, 65504.0f, 65519.0f, 3.0f, -65504.0f, 0.0f};
    REQUIRE(cache->append(0, {k.data(), 8, 8}, {v.data(), 8, 8}, 1, serial_executor()).ok());
    Queries queries = {k.data(), 8, 8, 1, 1, 0.3f, true};
    queries.out_type = ElementType::f16;
    std::vector<unsigned char> out(16), read(16);
    REQUIRE(cache->attend(0, queries, out.data(), 8, serial_executor()).ok());
    const std::vector<float> expected = {65504.0f, -65504.0f, 65504.0f,  65504.0f,
                                         65504.0f, 3.0f,      -65504.0f, 0.0f};
    CHECK(decoded(out, ElementType::f16) == expected);
    REQUIRE(cache->read(0, 0, 1, nullptr, 0, read.data(), 8, ElementType::f16).ok());
    CHECK(decoded(read, ElementType::f16) == expected);
}

TEST_CASE("rows are converted where they go, without a copy between", "[rows]") {
    const auto most_held = [](ElementType type, Order order) {
        CountingMemory memory;
        CacheConfig config = make_config("gear-4", n_kv_heads, key_dim, value_dim, 2000);
        config.allocator = memory.allocator();
        const auto cache = make_cache(config);
        const Laid keys(numbers(900, n_kv_heads, key_dim, 1, type), n_kv_heads, key_dim, type, order),
            values(numbers(900, n_kv_heads, value_dim, 1, type), n_kv_heads, value_dim, type, order);
        REQUIRE(cache->append(0, keys.rows, values.rows, 900, serial_executor()).ok());
        return memory.peak;
    };
    const std::uint64_t expected = most_held(ElementType::f32, Order::packed);
    for (const ElementType type : all_types) {
        for (const Order order : all_orders)
            CHECK(most_held(type, order) == expected);
    }
}

}  // namespace
}  // namespace gearkv::testing
