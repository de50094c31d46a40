// Copies of boxes of tensors to shared memory and back, emulated: a tensor map holds its TensorBox.
#pragma once

#include "convt/device/tensor_box.cuh"
#include "emulator.h"

namespace convt {

inline cudaError_t make_tensor_map(const TensorBox& tensor, CUtensorMap* map) {
  return emulator::make_tensor_map(tensor, map);
}

inline void copy_box(unsigned destination, const CUtensorMap& map, const BoxPlace& place, unsigned barrier,
                     emulator::Where where = emulator::Where::current()) {
  emulator::load_box(0, destination, map, place, barrier, where);
}
inline void copy_box_to(unsigned blocks, unsigned destination, const CUtensorMap& map, const BoxPlace& place,
                        unsigned barrier, emulator::Where where = emulator::Where::current()) {
  emulator::load_box(blocks, destination, map, place, barrier, where);
}
inline void store_box(const CUtensorMap& map, const BoxPlace& place, unsigned source,
                      emulator::Where where = emulator::Where::current()) {
  emulator::store_box(map, place, source, where);
}
inline void prefetch_map(const CUtensorMap&) {}

}  // namespace convt
