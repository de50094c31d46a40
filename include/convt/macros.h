// Lets the headers that host and device share compile with a plain C++ compiler too.
#pragma once

#if defined(__CUDACC__)
#define CONVT_HOST_DEVICE __host__ __device__
#else
#define CONVT_HOST_DEVICE
#endif

// Before a loop: whether the device's compiler unrolls it.
#if defined(__CUDA_ARCH__)
#define CONVT_UNROLL _Pragma("unroll")
#define CONVT_NO_UNROLL _Pragma("unroll 1")
#else
#define CONVT_UNROLL
#define CONVT_NO_UNROLL
#endif
