// What most files of the libraries include, compiled once with -Dprecompiled=true. Each file includes what it needs all
// the same.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>
