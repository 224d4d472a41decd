// Methods that are published and beat plain blocks: own implementations, no more than their error needs.
#pragma once

#include <cstddef>
#include <memory>

#include "formats.hpp"

namespace gearkv::quality {

float to_stored(float x);  // through fp16 and back
// Orthonormal Walsh-Hadamard transform of a power of two of floats; its own inverse.
void rotate(float* x, std::size_t n);

// TurboQuant (arXiv 2504.19874), the one that keeps the squared error small, of `bits` bits: a row's length
// in fp16, and its direction, rotated by random signs and Hadamard, in the best levels of a coordinate of the
// unit sphere. Centred: each channel's mean over all keys is taken off first and stored.
std::unique_ptr<Format> turbo_format(int bits, bool centred);
// The same with trellis codes in place of levels, as turbo1_tcq to turbo3_tcq of buun-llama-cpp: a window of
// 8, 8, 9 or 10 bits (of 1 to 4) slides over a row's bits and picks the level; the best path of all, its
// first state stored, and a length that makes up for what the code shortens. Levels are trained here on
// normal entries, theirs are on one model's. Of 4 bits it is nobody's: not published.
std::unique_ptr<Format> trellis_turbo_format(int bits, bool centred);
// KVarN (arXiv 2606.03458): tiles of 128 tokens of a head, rotated, whose rows and columns are brought to
// equal variance by 16 rounds of turns and then rounded between least and largest: keys by channel, values by
// token.
std::unique_ptr<Format> kvarn_format(int key_bits, int value_bits);

}  // namespace gearkv::quality
