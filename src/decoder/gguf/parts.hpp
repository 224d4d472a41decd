// Models in several files: NAME-00001-of-00003.gguf and so on. Every part is a GGUF file of its own; the
// first has the metadata, each has some of the tensors and the keys split.no (from 0), split.count and
// split.tensors.count (of all parts).
#pragma once

#include <string>
#include <vector>

#include "decoder/gguf/gguf.hpp"
#include "file/mapped_file.hpp"

namespace gearkv {

// One model out of its parts, in order: the metadata of the first, the tensors of all. A whole file is a
// model of one part. May throw std::bad_alloc. Errors: missing_key, bad_metadata (keys that are not those of
// part i of n), corrupt_model (tensors too many, too few or twice), unsupported_model (a part alone).
Status join_parts(std::vector<GgufFile> parts, GgufFile* out);

// A parsed model and the mappings it points into.
struct GgufModel {
    std::vector<MappedFile> files;
    GgufFile file;
};

// Opens a file, and with any part of a split one the others, which are looked for beside it under the same
// name with their own number; nothing in the files has a say in that. May throw std::bad_alloc. Errors: those
// of MappedFile::map (a missing part is named), parse_gguf and join_parts; bad_metadata for a part that is
// not named as what it is.
Status open_gguf(const char* path, GgufModel* out);
// The metadata alone, which are those of the first part. The other parts are not looked at.
Status open_gguf_values(const char* path, GgufModel* out);

}  // namespace gearkv
