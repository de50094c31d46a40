// Warpgroup instructions of compute capability 9.0a: products whose B operand is read from shared memory,
// and the barriers that connect the warps that stage it with those that multiply (PTX ISA 9.7.15 and
// 9.7.13.15).
//
// A warpgroup is 128 threads that start at a multiple of 128. A product multiplies 64 rows, 16 of each warp,
// whose A fragments lie in registers exactly as those of mma.sync do (convt/device/mma.cuh); the 128
// columns of the sums lie in sixteen C fragments side by side.
#pragma once

#include "convt/device/mma.cuh"

namespace convt {

inline constexpr int kWgmmaColumns = 128;

// The sums of one half of a product's columns: eight C fragments.
using WgmmaSums = float[kWgmmaColumns / 16][4];

// The descriptor of a B operand without swizzle, in two words: the address in 16 bytes and, from bit 16 on,
// how far apart its 8 x 8 blocks lie along the products' depth, in 16 bytes; then how far apart they lie
// along its columns: 128 bytes, side by side.
inline constexpr unsigned kWgmmaDescriptorHigh = 128 / 16;

// Orders this warp's earlier accesses of registers before the products that follow.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the committed groups are unfinished.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define CONVT_WGMMA(TYPE)                                                                         \
  asm volatile(                                                                                   \
      "{\n.reg .b64 b;\nmov.b64 b, {%68, %69};\n"                                                 \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                                \
      " {"                                                                                        \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "     \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "     \
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "     \
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                                  \
      "{%64, %65, %66, %67}, b, 1, 1, 1, 0;\n}\n"                                                 \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), \
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), \
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), \
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), \
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]), \
        "+f"(c[7][2]), "+f"(c[7][3]), "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), \
        "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), \
        "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), \
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), \
        "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), \
        "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])                                \
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(descriptor), "r"(high))

// c, d += a * b, one channel step; d are the sums of the second half of the columns. They and `a` are in use
// until the product has been waited for.
template <typename T>
__device__ inline void wgmma(WgmmaSums& c, WgmmaSums& d, const FragmentA& a, unsigned descriptor,
                             unsigned high);

template <>
__device__ inline void wgmma<__half>(WgmmaSums& c, WgmmaSums& d, const FragmentA& a, unsigned descriptor,
                                     unsigned high) {
  CONVT_WGMMA("f16");
}

template <>
__device__ inline void wgmma<__nv_bfloat16>(WgmmaSums& c, WgmmaSums& d, const FragmentA& a,
                                            unsigned descriptor, unsigned high) {
  CONVT_WGMMA("bf16");
}

#undef CONVT_WGMMA

__device__ inline FragmentA load_fragment(unsigned address) {
  FragmentA a;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
               : "r"(address)
               : "memory");
  return a;
}

__device__ inline unsigned load_word(unsigned address) {
  unsigned word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}

// Writes four 8 x 8 matrices of 16-bit elements, transposed; lane i passes the address for column i % 8 of
// matrix i / 8, and of each matrix the elements that the C fragment has.
__device__ inline void store_transposed(unsigned address, unsigned x0, unsigned x1, unsigned x2,
                                        unsigned x3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}

// Makes this thread's writes to shared memory visible to the products of threads that it then signals.
__device__ inline void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The registers of each thread of this warpgroup.
template <int kRegisters>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// A barrier of the block's warps in shared memory: it completes a phase each time `count` of them have
// arrived.
__device__ inline void init_barrier(unsigned barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ inline void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of this parity is complete.
__device__ inline void wait(unsigned barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A barrier of kThreads threads, numbered kBarrier; 0 is that of __syncthreads.
template <int kBarrier, int kThreads>
__device__ inline void sync_threads() {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

}  // namespace convt
