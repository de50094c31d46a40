// Copies between global and shared memory that do not pass through registers, emulated.
#pragma once

#include "convt/device/copy_width.cuh"
#include "emulator.h"

namespace convt {

template <int kBytes>
inline void copy_async_padded(unsigned destination, const void* source, int read) {
  emulator::copy_async(emulator::shared_at(destination, kBytes, kBytes), source, kBytes, read);
}
template <int kBytes>
inline void copy_async(unsigned destination, const void* source, bool valid) {
  copy_async_padded<kBytes>(destination, source, valid ? kBytes : 0);
}
template <int kBytes>
inline void copy_async(void* shared, const void* source, bool valid) {
  copy_async<kBytes>(emulator::address_of(shared), source, valid);
}
inline void commit_copies() { emulator::commit_async(); }
template <int kPending>
inline void wait_for_copies_but(emulator::Where where = emulator::Where::current()) {
  emulator::wait_for_async(kPending, where);
}
inline void wait_for_copies(emulator::Where where = emulator::Where::current()) {
  emulator::commit_async();
  emulator::wait_for_async(0, where);
}

inline constexpr bool kHasBulkCopies = true;

inline void copy_bulk(void* destination, unsigned source, int bytes,
                      emulator::Where where = emulator::Where::current()) {
  emulator::copy_bulk(destination, source, bytes, where);
}
inline void fence_for_bulk_copies() { emulator::fence_for_copies(); }
inline void commit_bulk_copies() { emulator::commit_stores(); }
template <int kPending>
inline void wait_for_bulk_reads_but(emulator::Where where = emulator::Where::current()) {
  emulator::wait_for_stores(kPending, where);
}
inline void wait_for_bulk_reads(emulator::Where where = emulator::Where::current()) {
  wait_for_bulk_reads_but<0>(where);
}

}  // namespace convt
