// Copies of boxes of tensors to shared memory and back (TMA, PTX ISA 9.7.9.27), compute capability 9.0: the
// tensor map says where the elements lie, elements outside of it are read as zeros and not written, and one
// thread starts a copy.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "convt/device/tensor_box.cuh"

namespace convt {

inline cudaError_t make_tensor_map(const TensorBox& tensor, CUtensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  // The driver's function, without linking to the driver: the library loads where there is none.
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                               cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function)
                                                                         : nullptr;
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t sides[kTensorRank], pitches[kTensorRank - 1];
  cuuint32_t box[kTensorRank], steps[kTensorRank];
  for (int i = 0; i < kTensorRank; ++i) {
    sides[i] = static_cast<cuuint64_t>(tensor.sides[i]);
    box[i] = static_cast<cuuint32_t>(tensor.box[i]);
    steps[i] = 1;
    // The distance between neighbours that do not exist must be a valid one too.
    if (i > 0)
      pitches[i - 1] =
          tensor.sides[i] > 1 ? static_cast<cuuint64_t>(tensor.pitches[i - 1]) : kTensorAlignment;
  }
  const CUresult result = encode(map, tensor.type, kTensorRank, const_cast<void*>(tensor.address), sides,
                                 pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 tensor.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Its bytes count towards a phase of `barrier`.
__device__ inline void copy_box(unsigned destination, const CUtensorMap& map, const BoxPlace& place,
                                unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
      "%5, %6, %7}], [%2];" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(place.at[0]), "r"(place.at[1]), "r"(place.at[2]), "r"(place.at[3]),
      "r"(place.at[4])
      : "memory");
}

// The same for the blocks of a cluster whose bits are set in `blocks`: the copy goes to the same place in
// each and counts towards its barrier.
__device__ inline void copy_box_to(unsigned blocks, unsigned destination, const CUtensorMap& map,
                                   const BoxPlace& place, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(destination),
      "l"(&map), "r"(barrier), "h"(static_cast<unsigned short>(blocks)), "r"(place.at[0]), "r"(place.at[1]),
      "r"(place.at[2]), "r"(place.at[3]), "r"(place.at[4])
      : "memory");
}

// From shared memory, what of the box is inside of the tensor. Belongs to the group of bulk copies that this
// thread commits next (convt/device/async_copy.cuh).
__device__ inline void store_box(const CUtensorMap& map, const BoxPlace& place, unsigned source) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(
          &map),
      "r"(source), "r"(place.at[0]), "r"(place.at[1]), "r"(place.at[2]), "r"(place.at[3]), "r"(place.at[4])
      : "memory");
}

// Reads the map ahead of the first copy.
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

}  // namespace convt
