// Numbers of a SPEC, where the C++ library reads no floats (libc++ before 20, and so Android's).
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace gearkv {

// As std::from_chars of a float, without signs, names and hexadecimal digits: "2", "0.02", ".5", "1e-05".
// Rounded to the nearest when 15 digits and an exponent of 22 suffice, else off by a unit in the last place
// at most.
inline std::from_chars_result read_decimal(const char* first, const char* last, float* out) noexcept {
    constexpr std::uint64_t most = 1000000000000000;  // of digits, which a double holds
    std::uint64_t digits = 0;
    int exponent = 0;
    bool any = false, point = false;
    const char* at = first;
    for (; at != last; ++at) {
        if (*at == '.' && !point) {
            point = true;
            continue;
        }
        if (*at < '0' || *at > '9') break;
        any = true;
        if (digits < most / 10) {
            digits = 10 * digits + static_cast<std::uint64_t>(*at - '0');
            exponent -= point;
        } else {
            exponent += !point;
        }
        if (exponent > 1000 || exponent < -1000) return {at, std::errc::result_out_of_range};
    }
    if (!any) return {first, std::errc::invalid_argument};
    if (at != last && (*at == 'e' || *at == 'E')) {
        const char* digit = at + 1;
        const bool negative = digit != last && *digit == '-';
        if (digit != last && (*digit == '-' || *digit == '+')) ++digit;
        int written = 0;
        const char* end = digit;
        for (; end != last && *end >= '0' && *end <= '9'; ++end)
            written = written < 1000 ? 10 * written + (*end - '0') : written;
        if (end != digit) {
            exponent += negative ? -written : written;
            at = end;
        }
    }
    const auto whole = static_cast<double>(digits);
    const auto power = [](int n) {
        double x = 1.0;
        for (; n > 0; --n)
            x *= 10.0;  // exact up to 10^22
        return x;
    };
    double x;
    if (exponent >= 0) {
        x = digits == 0 ? 0.0 : whole * power(exponent < 60 ? exponent : 60);
    } else if (exponent >= -22) {
        const double by = power(-exponent);
        x = whole / by;
        // Half way between two floats it is told by what the quotient lacks.
        std::uint64_t bits;
        std::memcpy(&bits, &x, sizeof(bits));
        if ((bits & 0x1fffffff) == 0x10000000) {
            const double rest = std::fma(x, by, -whole);
            bits += rest < 0.0 ? 1 : rest > 0.0 ? std::uint64_t{0} - 1 : 0;
            std::memcpy(&x, &bits, sizeof(x));
        }
    } else {
        const int beyond = -exponent - 22;
        x = beyond > 60 ? 0.0 : whole / 1e22 / power(beyond);
    }
    if (x > 3.4028235e38) return {at, std::errc::result_out_of_range};
    *out = static_cast<float>(x);
    return {at, std::errc()};
}

// The library's, where it has one.
inline std::from_chars_result read_float(const char* first, const char* last, float* out) noexcept {
#if defined(__cpp_lib_to_chars)
    return std::from_chars(first, last, *out);
#else
    return read_decimal(first, last, out);
#endif
}

}  // namespace gearkv
