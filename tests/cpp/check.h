// Checks for test programs: a failed one is printed with its place, and makes result() non-zero.
#pragma once

#include <cstdio>
#include <string>

namespace check {

inline int failures = 0;

inline void that(bool condition, const char* text, const char* file, int line, const std::string& context) {
  if (condition) return;
  ++failures;
  constexpr int kMostPrinted = 20;
  if (failures <= kMostPrinted)
    std::fprintf(stderr, "%s:%d: %s\n    %s\n", file, line, text, context.c_str());
}

inline int result() {
  if (failures != 0) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition, context) check::that((condition), #condition, __FILE__, __LINE__, context)
