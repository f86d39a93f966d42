// The CPU ops as hot_loops.cpp runs them: every variant that has code of its own.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "hot_inputs.h"

namespace hot {

constexpr auto kSingle = ScalarType::Float, kDouble = ScalarType::Double;
const std::vector<ScalarType> kFloats = {kSingle, ScalarType::BFloat16, ScalarType::Half, kDouble};
const std::vector<ScalarType> kOne = {kSingle};

using Call = std::function<TensorList()>;  // returns the results

struct Case {
  std::string name;  // the op's, and which variant
  std::vector<ScalarType> types;
  Call (*make)(Inputs& in);  // everything but the call itself
  bool streamed = false;     // also with so many elements that outputs go past the caches
};

std::vector<Case> step_cases();       // base steps, norm, perturbation, Bregman steps
std::vector<Case> selection_cases();  // masks, compaction, groups
std::vector<Case> random_cases();     // what draws random directions

}  // namespace hot
