// Warpgroup instructions of compute capability 9.0a: products whose operands are read from shared memory, and
// the barriers that connect the threads and copies that bring them there with the warps that multiply (PTX
// ISA 9.7.15, 9.7.13.15 and 9.7.9.25).
//
// A warpgroup is 128 threads that start at a multiple of 128. A product multiplies 64 rows, 16 of each warp;
// the columns of the sums lie in C fragments (convt/device/mma.cuh) side by side.
#pragma once

#include <type_traits>

#include "convt/device/mma.cuh"
#include "convt/device/wgmma_operands.cuh"

namespace convt {

// Orders this warp's earlier accesses of registers before the products that follow.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the committed groups are unfinished.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// After a wait: keeps the compiler from moving what uses the sums in front of it.
template <int kBlocks>
__device__ inline void hold(float (&sums)[kBlocks][4]) {
#pragma unroll
  for (auto& c : sums) asm volatile("" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])::"memory");
}

// As operands of an instruction: the registers of the sums of so many columns, and those sums.
#define CONVT_REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define CONVT_REGISTERS_32 CONVT_REGISTERS_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define CONVT_REGISTERS_48 CONVT_REGISTERS_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define CONVT_REGISTERS_64 CONVT_REGISTERS_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define CONVT_REGISTERS_80 CONVT_REGISTERS_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define CONVT_REGISTERS_96 CONVT_REGISTERS_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define CONVT_REGISTERS_112 CONVT_REGISTERS_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define CONVT_REGISTERS_128 CONVT_REGISTERS_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define CONVT_REGISTERS_144 CONVT_REGISTERS_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define CONVT_REGISTERS_160 CONVT_REGISTERS_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define CONVT_REGISTERS_176 CONVT_REGISTERS_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define CONVT_REGISTERS_192 CONVT_REGISTERS_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define CONVT_REGISTERS_208 CONVT_REGISTERS_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define CONVT_REGISTERS_224 CONVT_REGISTERS_208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define CONVT_REGISTERS_240 CONVT_REGISTERS_224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define CONVT_REGISTERS_256 CONVT_REGISTERS_240 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define CONVT_BLOCK(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define CONVT_SUMS_16(c) CONVT_BLOCK(c, 0), CONVT_BLOCK(c, 1)
#define CONVT_SUMS_32(c) CONVT_SUMS_16(c), CONVT_BLOCK(c, 2), CONVT_BLOCK(c, 3)
#define CONVT_SUMS_48(c) CONVT_SUMS_32(c), CONVT_BLOCK(c, 4), CONVT_BLOCK(c, 5)
#define CONVT_SUMS_64(c) CONVT_SUMS_48(c), CONVT_BLOCK(c, 6), CONVT_BLOCK(c, 7)
#define CONVT_SUMS_80(c) CONVT_SUMS_64(c), CONVT_BLOCK(c, 8), CONVT_BLOCK(c, 9)
#define CONVT_SUMS_96(c) CONVT_SUMS_80(c), CONVT_BLOCK(c, 10), CONVT_BLOCK(c, 11)
#define CONVT_SUMS_112(c) CONVT_SUMS_96(c), CONVT_BLOCK(c, 12), CONVT_BLOCK(c, 13)
#define CONVT_SUMS_128(c) CONVT_SUMS_112(c), CONVT_BLOCK(c, 14), CONVT_BLOCK(c, 15)
#define CONVT_SUMS_144(c) CONVT_SUMS_128(c), CONVT_BLOCK(c, 16), CONVT_BLOCK(c, 17)
#define CONVT_SUMS_160(c) CONVT_SUMS_144(c), CONVT_BLOCK(c, 18), CONVT_BLOCK(c, 19)
#define CONVT_SUMS_176(c) CONVT_SUMS_160(c), CONVT_BLOCK(c, 20), CONVT_BLOCK(c, 21)
#define CONVT_SUMS_192(c) CONVT_SUMS_176(c), CONVT_BLOCK(c, 22), CONVT_BLOCK(c, 23)
#define CONVT_SUMS_208(c) CONVT_SUMS_192(c), CONVT_BLOCK(c, 24), CONVT_BLOCK(c, 25)
#define CONVT_SUMS_224(c) CONVT_SUMS_208(c), CONVT_BLOCK(c, 26), CONVT_BLOCK(c, 27)
#define CONVT_SUMS_240(c) CONVT_SUMS_224(c), CONVT_BLOCK(c, 28), CONVT_BLOCK(c, 29)
#define CONVT_SUMS_256(c) CONVT_SUMS_240(c), CONVT_BLOCK(c, 30), CONVT_BLOCK(c, 31)

#define CONVT_WGMMA(SHAPE, TYPE, LAYOUTS)                                                      \
  asm volatile(                                                                                \
      "{\n.reg .b64 a, b;\n.reg .pred adds;\nmov.b64 a, {%64, %66};\nmov.b64 b, {%65, %66};\n" \
      "setp.ne.b32 adds, %67, 0;\n"                                                            \
      "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPE "." TYPE " {" CONVT_REGISTERS_128     \
      "}, a, b, adds, 1, 1" LAYOUTS ";\n}\n"                                                   \
      : CONVT_SUMS_64(c0), CONVT_SUMS_64(c1)                                                   \
      : "r"(a), "r"(b), "r"(kWgmmaDescriptorHigh), "r"(adds))

// c0, c1 += a * b, or = a * b where `adds` is 0, one channel step of 64 rows and 128 columns; `a` and `b` are
// the lower words of the operands' descriptors. The sums are in use until the product has been waited for.
template <typename T>
__device__ inline void wgmma(WgmmaSums& c0, WgmmaSums& c1, unsigned a, unsigned b, int adds) {
  if constexpr (std::is_same_v<T, __half>) {
    CONVT_WGMMA("m64n128k16", "f16", ", 0, 0");
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    CONVT_WGMMA("m64n128k16", "bf16", ", 0, 0");
  } else {
    CONVT_WGMMA("m64n128k8", "tf32", "");
  }
}

#undef CONVT_WGMMA

// The operands after the sums are A, B, HIGH and ADDS.
#define CONVT_WGMMA_LINES(COLUMNS, DEPTH, TYPE, LAYOUTS, A, B, HIGH, ADDS)                                 \
  if constexpr (kColumns == COLUMNS)                                                                       \
  asm volatile("{\n.reg .b64 a, b;\n.reg .pred adds;\nmov.b64 a, {%" #A ", %" #HIGH "};\nmov.b64 b, {%" #B \
               ", %" #HIGH "};\nsetp.ne.b32 adds, %" #ADDS                                                 \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #COLUMNS DEPTH ".f32." TYPE "." TYPE              \
               " {" CONVT_REGISTERS_##COLUMNS "}, a, b, adds, 1, 1" LAYOUTS ";\n}\n"                       \
               : CONVT_SUMS_##COLUMNS(c)                                                                   \
               : "r"(a), "r"(b), "r"(kWgmmaSwizzledHigh), "r"(adds))

#define CONVT_WGMMA_COLUMNS(DEPTH, TYPE, LAYOUTS)                   \
  CONVT_WGMMA_LINES(16, DEPTH, TYPE, LAYOUTS, 8, 9, 10, 11);        \
  CONVT_WGMMA_LINES(32, DEPTH, TYPE, LAYOUTS, 16, 17, 18, 19);      \
  CONVT_WGMMA_LINES(48, DEPTH, TYPE, LAYOUTS, 24, 25, 26, 27);      \
  CONVT_WGMMA_LINES(64, DEPTH, TYPE, LAYOUTS, 32, 33, 34, 35);      \
  CONVT_WGMMA_LINES(80, DEPTH, TYPE, LAYOUTS, 40, 41, 42, 43);      \
  CONVT_WGMMA_LINES(96, DEPTH, TYPE, LAYOUTS, 48, 49, 50, 51);      \
  CONVT_WGMMA_LINES(112, DEPTH, TYPE, LAYOUTS, 56, 57, 58, 59);     \
  CONVT_WGMMA_LINES(128, DEPTH, TYPE, LAYOUTS, 64, 65, 66, 67);     \
  CONVT_WGMMA_LINES(144, DEPTH, TYPE, LAYOUTS, 72, 73, 74, 75);     \
  CONVT_WGMMA_LINES(160, DEPTH, TYPE, LAYOUTS, 80, 81, 82, 83);     \
  CONVT_WGMMA_LINES(176, DEPTH, TYPE, LAYOUTS, 88, 89, 90, 91);     \
  CONVT_WGMMA_LINES(192, DEPTH, TYPE, LAYOUTS, 96, 97, 98, 99);     \
  CONVT_WGMMA_LINES(208, DEPTH, TYPE, LAYOUTS, 104, 105, 106, 107); \
  CONVT_WGMMA_LINES(224, DEPTH, TYPE, LAYOUTS, 112, 113, 114, 115); \
  CONVT_WGMMA_LINES(240, DEPTH, TYPE, LAYOUTS, 120, 121, 122, 123); \
  CONVT_WGMMA_LINES(256, DEPTH, TYPE, LAYOUTS, 128, 129, 130, 131);

// c += a * b, or = a * b where `adds` is 0, 32 bytes of channels of 64 rows and kColumns columns. Of 16-bit
// elements the lines of `a` are channels, 64 rows each, and those of `b` are channels where kTurned, else
// columns. Of TF32 all lines are rows or columns.
template <typename T, int kColumns, bool kTurned>
__device__ inline void multiply_lines(float (&c)[kColumns / 8][4], unsigned a, unsigned b, int adds) {
  static_assert(kColumns % kWgmmaColumnStep == 0 && 0 < kColumns && kColumns <= kWgmmaMostColumns);
  if constexpr (std::is_same_v<T, float>) {
    static_assert(!kTurned);
    CONVT_WGMMA_COLUMNS("k8", "tf32", "")
  } else if constexpr (std::is_same_v<T, __half>) {
    if constexpr (kTurned) {
      CONVT_WGMMA_COLUMNS("k16", "f16", ", 1, 1")
    } else {
      CONVT_WGMMA_COLUMNS("k16", "f16", ", 1, 0")
    }
  } else {
    if constexpr (kTurned) {
      CONVT_WGMMA_COLUMNS("k16", "bf16", ", 1, 1")
    } else {
      CONVT_WGMMA_COLUMNS("k16", "bf16", ", 1, 0")
    }
  }
}

#undef CONVT_WGMMA_COLUMNS
#undef CONVT_WGMMA_LINES

// The operands after the sums are A0 to A3, B, HIGH and ADDS.
#define CONVT_WGMMA_FRAGMENT(COLUMNS, A0, A1, A2, A3, B, HIGH, ADDS)                                    \
  if constexpr (kColumns == COLUMNS)                                                                    \
  asm volatile("{\n.reg .b64 b;\n.reg .pred adds;\nmov.b64 b, {%" #B ", %" #HIGH                        \
               "};\nsetp.ne.b32 adds, %" #ADDS ", 0;\nwgmma.mma_async.sync.aligned.m64n" #COLUMNS       \
               "k8.f32.tf32.tf32 {" CONVT_REGISTERS_##COLUMNS "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 \
                                                              "}, b, adds, 1, 1;\n}\n"                  \
               : CONVT_SUMS_##COLUMNS(c)                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(kWgmmaSwizzledHigh), "r"(adds))

// The same of TF32 with `a` in registers: a warp's A fragment of 16 rows, of which a lane has rows lane / 4
// and 8 more of channel lane % 4, and then of channel lane % 4 + 4. They are in use until the product has
// been waited for.
template <int kColumns>
__device__ inline void multiply_fragment(float (&c)[kColumns / 8][4], const unsigned (&a)[4], unsigned b,
                                         int adds) {
  static_assert(kColumns == 32 || kColumns == 64 || kColumns == 96 || kColumns == 128 || kColumns == 160 ||
                kColumns == 192 || kColumns == 224);
  CONVT_WGMMA_FRAGMENT(32, 16, 17, 18, 19, 20, 21, 22);
  CONVT_WGMMA_FRAGMENT(64, 32, 33, 34, 35, 36, 37, 38);
  CONVT_WGMMA_FRAGMENT(96, 48, 49, 50, 51, 52, 53, 54);
  CONVT_WGMMA_FRAGMENT(128, 64, 65, 66, 67, 68, 69, 70);
  CONVT_WGMMA_FRAGMENT(160, 80, 81, 82, 83, 84, 85, 86);
  CONVT_WGMMA_FRAGMENT(192, 96, 97, 98, 99, 100, 101, 102);
  CONVT_WGMMA_FRAGMENT(224, 112, 113, 114, 115, 116, 117, 118);
}

#undef CONVT_WGMMA_FRAGMENT
#undef CONVT_SUMS_256
#undef CONVT_SUMS_240
#undef CONVT_SUMS_224
#undef CONVT_SUMS_208
#undef CONVT_SUMS_192
#undef CONVT_SUMS_176
#undef CONVT_SUMS_160
#undef CONVT_SUMS_144
#undef CONVT_SUMS_128
#undef CONVT_SUMS_112
#undef CONVT_SUMS_96
#undef CONVT_SUMS_80
#undef CONVT_SUMS_64
#undef CONVT_SUMS_48
#undef CONVT_SUMS_32
#undef CONVT_SUMS_16
#undef CONVT_BLOCK
#undef CONVT_REGISTERS_256
#undef CONVT_REGISTERS_240
#undef CONVT_REGISTERS_224
#undef CONVT_REGISTERS_208
#undef CONVT_REGISTERS_192
#undef CONVT_REGISTERS_176
#undef CONVT_REGISTERS_160
#undef CONVT_REGISTERS_144
#undef CONVT_REGISTERS_128
#undef CONVT_REGISTERS_112
#undef CONVT_REGISTERS_96
#undef CONVT_REGISTERS_80
#undef CONVT_REGISTERS_64
#undef CONVT_REGISTERS_48
#undef CONVT_REGISTERS_32
#undef CONVT_REGISTERS_16

// Writes four 8 x 8 matrices of 16-bit elements, transposed; lane i passes the address for column i % 8 of
// matrix i / 8, and of each matrix the elements that the C fragment has.
__device__ inline void store_transposed(unsigned address, unsigned x0, unsigned x1, unsigned x2,
                                        unsigned x3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}

// Makes writes to shared memory that this thread has done, or has been told of by a barrier, visible to the
// products that it starts and to those of threads that it then signals.
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

// Chooses one thread of a warp, all of whose threads call it.
__device__ inline bool elect_thread() {
  int chosen;
  asm volatile("{\n.reg .pred one;\nelect.sync _|one, 0xffffffff;\nselp.s32 %0, 1, 0, one;\n}\n"
               : "=r"(chosen));
  return chosen != 0;
}

// A barrier of the block's warps in shared memory: it completes a phase each time `count` of them have
// arrived.
__device__ inline void init_barrier(unsigned barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ inline void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives once every asynchronous copy that this thread has started is in shared memory.
__device__ inline void arrive_after_copies(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and says that the phase is complete only when copies have brought `bytes` more.
__device__ inline void arrive_and_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Makes barriers that this thread has initialised known to copies.
__device__ inline void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// One thread copies `bytes`, a multiple of 16, from global memory; they count towards a phase of `barrier`.
__device__ inline void copy_bulk(unsigned destination, const void* source, unsigned bytes, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

// The same for both blocks of a cluster: the copy goes to the same place in each and counts towards its
// barrier.
__device__ inline void copy_bulk_to_both(unsigned destination, const void* source, unsigned bytes,
                                         unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], %4;" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(barrier), "h"(static_cast<unsigned short>(3))
      : "memory");
}

// Arrives at the barrier in the same place of block `rank` of the cluster.
__device__ inline void arrive_at(unsigned barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// The shared memory of block `rank` of the cluster that lies where `address` does in this one.
__device__ inline unsigned address_at(unsigned address, int rank) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
__device__ inline void store_at(unsigned there, const float (&x)[4]) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(there), "f"(x[0]), "f"(x[1]),
               "f"(x[2]), "f"(x[3])
               : "memory");
}

// A barrier of all threads of the cluster that have not ended.
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// Waits until the phase of this parity is complete.
__device__ inline void wait(unsigned barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A barrier of kThreads threads; number 0 is that of __syncthreads.
template <int kThreads>
__device__ inline void sync_threads(int number) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
}

// Arrives at it without waiting.
template <int kThreads>
__device__ inline void arrive_at_threads(int number) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
}

}  // namespace convt
