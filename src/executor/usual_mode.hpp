// Tasks in the usual float mode, whatever that of the threads is.
//
// A function and no class that others derive from: the core is compiled without RTTI and the decoder with it,
// so a class with virtual functions that both compile would be one thing here and another there.
#pragma once

#include "gearkv/executor.hpp"

namespace gearkv {

// executor.parallel_for, with every task in the usual float mode.
void run_in_usual_mode(Executor& executor, std::size_t n_tasks, Executor::Task task, void* context) noexcept;

}  // namespace gearkv
