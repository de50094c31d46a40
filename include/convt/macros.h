// Lets the headers that host and device share compile with a plain C++ compiler too.
#pragma once

#if defined(__CUDACC__)
#define CONVT_HOST_DEVICE __host__ __device__
#else
#define CONVT_HOST_DEVICE
#endif
