// What the kernels are compiled with for the CPU, in tests, instead of prelude.cuh: a kernel becomes a function that runs its
// threads one after another, the last first where that is asked for.
typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef struct { u64 v[16]; } Args;
static _Thread_local u32 emulated_thread;
#define DEVICE static inline
#define CONSTANT static const
#define UNROLL
#define THREAD emulated_thread
#define KERNEL(name) \
    static void name##_body(const Args a); \
    void emulated_##name(const Args *args, u32 threads, u32 backwards) { \
        for (u32 i = 0; i < threads; i++) { \
            emulated_thread = backwards ? threads - 1 - i : i; \
            name##_body(*args); \
        } \
    } \
    static void name##_body(const Args a)
