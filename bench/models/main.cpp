// Writes a GGUF file of random weights, for `gearkv bench` and the like.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <string>

#include "random_model.hpp"

using namespace gearkv;
using namespace gearkv::bench;

int main(int argc, char** argv) {
    CLI::App app{"A model of random weights in a GGUF file"};
    std::string shape_name = "1B", type_name = "Q8_0", path;
    std::uint64_t seed = 1;
    std::vector<std::string> shape_names, type_names;
    for (const RandomShape& shape : random_shapes())
        shape_names.push_back(shape.name);
    for (const TensorType& type : tensor_types)
        type_names.push_back(type.name);
    app.add_option("--shape", shape_name, "parameters")
        ->check(CLI::IsMember(shape_names))
        ->capture_default_str();
    app.add_option("--type", type_name, "of all matrices")
        ->check(CLI::IsMember(type_names))
        ->capture_default_str();
    app.add_option("--seed", seed, "equal seeds give equal bytes")->capture_default_str();
    app.add_option("FILE", path, "the file to write, replaced if it is there")->required();
    CLI11_PARSE(app, argc, argv);

    const auto shape = random_shapes();
    const auto* wanted = std::find_if(shape.data(), shape.data() + shape.size(),
                                      [&](const RandomShape& one) { return one.name == shape_name; });
    const auto* type = std::find_if(std::begin(tensor_types), std::end(tensor_types),
                                    [&](const TensorType& one) { return one.name == type_name; });
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    if (file && write_random_model(file, *wanted, type->type, seed)) return 0;
    std::fprintf(stderr, "%s: cannot be written\n", path.c_str());
    return 1;
}
