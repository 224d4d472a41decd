// All that symbols.sh complains about, in one library.
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <iostream>

struct __attribute__((visibility("default"))) Foreign {
    Foreign();
};
Foreign::Foreign() {
    std::puts("before main");
    std::cout << "by a stream";
    std::setlocale(LC_ALL, "");
    if (std::getenv("HOME") == nullptr) std::abort();
}
static Foreign foreign;

namespace gearkv {
void innocent();
void innocent() {
    static_cast<void>(new Foreign);
}
}  // namespace gearkv
