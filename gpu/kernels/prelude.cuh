// What every kernel is compiled with on a device. The kernels keep to what is both C and CUDA C++, so that a C compiler can
// build the same text for the CPU (src/machine/emulated.rs), where it is checked on machines without a GPU.
//
// A kernel takes one argument, sixteen numbers of 64 bits, some of which are addresses. The first is always the number of
// threads that have work: the last block may have more.

typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

typedef struct {
    u64 v[16];
} Args;

#define DEVICE static __device__ __forceinline__
#define CONSTANT static __device__ __constant__ const
#define KERNEL(name) extern "C" __global__ void name(const Args a)
// Before a loop whose index must be known when it is compiled, or its words lie in memory instead of registers.
#define UNROLL _Pragma("unroll")
#define THREAD (blockIdx.x * blockDim.x + threadIdx.x)
