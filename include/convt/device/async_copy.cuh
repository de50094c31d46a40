// Copies between global and shared memory that do not pass through registers (cp.async, PTX ISA 9.7.9.25).
#pragma once

#include "convt/device/copy_width.cuh"

namespace convt {

// Starts a copy of kBytes (4, 8 or 16) to shared memory, of which the first `read` come from `source` and the
// others are zeros; where `read` is 0, `source` may be anything.
template <int kBytes>
__device__ inline void copy_async_padded(unsigned destination, const void* source, int read) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(read));
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination), "l"(source), "n"(kBytes),
                 "r"(read));
  }
}

// The same of all or, where `valid` is false, of none.
template <int kBytes>
__device__ inline void copy_async(unsigned destination, const void* source, bool valid) {
  copy_async_padded<kBytes>(destination, source, valid ? kBytes : 0);
}

template <int kBytes>
__device__ inline void copy_async(void* shared, const void* source, bool valid) {
  copy_async<kBytes>(static_cast<unsigned>(__cvta_generic_to_shared(shared)), source, valid);
}

// Copies are waited for in groups: those that a thread has started since its last call belong to one.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are unfinished.
template <int kPending>
__device__ inline void wait_for_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Waits until every copy that this thread has started is in shared memory. A barrier makes it visible to the
// block.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- from shared to global memory: bulk copies of compute capability 9.0, of multiples of 16 bytes at such
// addresses. Before it they are not there, and what waits for them does nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kHasBulkCopies = true;
#else
inline constexpr bool kHasBulkCopies = false;
#endif

// Starts a copy of `bytes`. Where other threads wrote them, a fence of theirs and a barrier come before it.
__device__ inline void copy_bulk(void* destination, unsigned source, int bytes) {
  if constexpr (kHasBulkCopies) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination),
                 "r"(source), "r"(bytes)
                 : "memory");
  }
}

// Makes what this thread has written to shared memory visible to bulk copies.
__device__ inline void fence_for_bulk_copies() {
  if constexpr (kHasBulkCopies) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void commit_bulk_copies() {
  if constexpr (kHasBulkCopies) asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all that this thread has committed has been read, but for the last kPending groups.
template <int kPending>
__device__ inline void wait_for_bulk_reads_but() {
  if constexpr (kHasBulkCopies) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

__device__ inline void wait_for_bulk_reads() { wait_for_bulk_reads_but<0>(); }

}  // namespace convt
