// What most files of tests include, compiled once with -Dprecompiled=true. Each file includes what it needs all the same.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"
