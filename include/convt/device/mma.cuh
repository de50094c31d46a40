// Tensor-core instructions of compute capability 8.0 and how their operands lie in registers (PTX
// ISA 9.7.14).
//
// All three matrices are spread over the 32 lanes of a warp; group = lane / 4, member = lane % 4. In terms of
// 4-byte registers, the fragments of 16-bit types (and of tf32, with one element where they have two) are:
//
//   A, 16 rows x 32 bytes   a[0]: row group,      bytes 4 * member ..      a[2]: the same row, 16 bytes on
//                           a[1]: row group + 8,  bytes 4 * member ..      a[3]: the same row, 16 bytes on
//   B, 32 bytes x 8 columns b[0]: column group,   bytes 4 * member ..      b[1]: the same column, 16 bytes on
//   C, 16 x 8 floats        c[0], c[1]: row group,     columns 2 * member, 2 * member + 1
//                           c[2], c[3]: row group + 8, the same columns
#pragma once

#include <type_traits>

#include "convt/device/scalar.cuh"
#include "convt/device/shared_words.cuh"

namespace convt {

using FragmentA = uint4;

// Reads four matrices of 8 rows x 16 bytes; lane i passes the address of row i % 8 of matrix i / 8. In each
// of them the lane receives bytes 4 * member .. of row `group`.
__device__ inline void load_matrices(unsigned address, unsigned (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same of 16-bit elements, each matrix transposed.
__device__ inline void load_transposed(unsigned address, unsigned (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Transposes a matrix of 8 x 8 16-bit elements: the lane passes elements 2 * member, 2 * member + 1 of row
// `group`, and receives those of column `group`.
__device__ inline unsigned transpose_matrix(unsigned x) {
  unsigned y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

#define CONVT_MMA(SHAPE, TYPE)                                               \
  asm("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE                \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1))

// c += a * b, one channel step.
template <typename T>
__device__ inline void multiply_add(float (&c)[4], const FragmentA& a, unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<T, __half>) {
    CONVT_MMA("m16n8k16", "f16");
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    CONVT_MMA("m16n8k16", "bf16");
  } else {
    CONVT_MMA("m16n8k8", "tf32");
  }
}

#undef CONVT_MMA

}  // namespace convt
