// All of gearkv-decoder: a small runtime for GGUF models on top of the core.
#pragma once

#include "gearkv/chat.hpp"
#include "gearkv/escape.hpp"
#include "gearkv/fit.hpp"
#include "gearkv/model.hpp"
#include "gearkv/sampler.hpp"
#include "gearkv/session.hpp"
#include "gearkv/speculation.hpp"
#include "gearkv/stop.hpp"
#include "gearkv/tokenizer.hpp"
