// Loads and stores of shared memory by its address, emulated.
#pragma once

#include "emulator.h"

namespace convt {

inline unsigned shared_address(const void* shared) { return emulator::address_of(shared); }

namespace emulated {

template <typename Word>
Word load(unsigned address) {
  Word word;
  std::memcpy(&word, emulator::loaded_shared_at(address, sizeof(Word)), sizeof(Word));
  return word;
}

template <typename Word>
void store(unsigned address, const Word& word) {
  std::memcpy(emulator::written_shared_at(address, sizeof(Word)), &word, sizeof(Word));
}

}  // namespace emulated

inline unsigned short load_half_word(unsigned address) { return emulated::load<unsigned short>(address); }
inline unsigned load_word(unsigned address) { return emulated::load<unsigned>(address); }
inline uint2 load_two_words(unsigned address) { return emulated::load<uint2>(address); }
inline uint4 load_words(unsigned address) { return emulated::load<uint4>(address); }

inline void store_shared(unsigned address, unsigned short half) { emulated::store(address, half); }
inline void store_shared(unsigned address, unsigned word) { emulated::store(address, word); }
inline void store_shared(unsigned address, unsigned x, unsigned y) {
  emulated::store(address, make_uint2(x, y));
}
inline void store_shared(unsigned address, unsigned x, unsigned y, unsigned z, unsigned w) {
  emulated::store(address, make_uint4(x, y, z, w));
}

}  // namespace convt
