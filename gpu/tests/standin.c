// A stand-in for CUDA's driver and compiler, for tests on machines without a GPU: the calls that the lane makes, with kernels
// that the C compiler built for this CPU. Everything happens at once, so it shows which calls are made and with what, and what
// becomes of errors; it shows nothing of the order in which a device does things.

#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long v[16]; } Numbers;
typedef void (*Kernel)(const Numbers *, unsigned, unsigned);

#define KERNELS(X) X(sha256) X(blake3_chunks) X(blake3_parents) X(crop) X(nearest) X(resize_first) X(resize_last) X(gray) \
    X(table) X(swap_red_blue) X(convert) X(overlay)
#define DECLARE(name) void emulated_##name(const Numbers *, unsigned, unsigned);
KERNELS(DECLARE)

enum { OK = 0, NO_MEMORY = 2, NO_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

static int retained, broken, live, compiled, launches_left = -1, allocations_left = -1;
static __thread void *current;
// Streams of one device are threads here.
static int lock_word;
static void lock(void) { while (__atomic_exchange_n(&lock_word, 1, __ATOMIC_ACQUIRE)) {} }
static void unlock(void) { __atomic_store_n(&lock_word, 0, __ATOMIC_RELEASE); }

// Whether this call, which counts down `left`, is the one that fails.
static int falls(int *left) {
    lock();
    int now = *left == 0;
    if (*left >= 0) --*left;
    unlock();
    return now;
}

// For tests: the call after so many more fails.
void standin_lose_after(int launches) { launches_left = launches; }
void standin_no_memory_after(int allocations) { allocations_left = allocations; }
int standin_live(void) { return live; }
int standin_retained(void) { return retained; }
int standin_compiled(void) { return compiled; }

static int state(void) { return broken ? ILLEGAL_ADDRESS : retained ? OK : NO_CONTEXT; }

int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? OK : 101; }
int cuDeviceGetName(char *name, int bytes, int device) { (void)device; strncpy(name, "stand-in", bytes); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; // Compute capability 9.0; memory pools.
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    lock();
    retained++;
    unlock();
    *context = &retained;
    return OK;
}
// The last that lets go ends the context, and what broke it.
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    lock();
    if (--retained == 0) broken = live = 0;
    unlock();
    return OK;
}
int cuCtxGetCurrent(void **context) { *context = current; return OK; }
int cuCtxSetCurrent(void *context) { current = context; return OK; }
int cuCtxSetFlags(unsigned flags) { (void)flags; return state(); }
int cuCtxSynchronize(void) { return state(); }
int cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = malloc(1); return state(); }
int cuStreamDestroy_v2(void *stream) { free(stream); return state(); }
int cuStreamSynchronize(void *stream) { (void)stream; return state(); }
int cuMemAllocAsync(unsigned long long *at, size_t bytes, void *stream) {
    (void)stream;
    if (state()) return state();
    if (bytes == 0 || falls(&allocations_left)) return NO_MEMORY;
    *at = (unsigned long long)malloc(bytes);
    lock();
    live++;
    unlock();
    return OK;
}
int cuMemFreeAsync(unsigned long long at, void *stream) {
    (void)stream;
    if (state()) return state();
    free((void *)at);
    lock();
    live--;
    unlock();
    return OK;
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    if (!state()) memcpy((void *)to, from, bytes);
    return state();
}
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream) {
    (void)stream;
    if (!state()) memcpy(to, (const void *)from, bytes);
    return state();
}
// A module is its text, which the compiler below has not changed.
int cuModuleLoadData(void **module, const void *text) {
    *module = (void *)(strstr(text, "KERNEL(") ? strdup(text) : 0);
    return *module ? state() : 218;
}
int cuModuleUnload(void *module) { free(module); return state(); }
int cuModuleGetFunction(Kernel *function, void *module, const char *name) {
    char definition[64] = "KERNEL(";
    strcat(strcat(definition, name), ") {");
    if (!strstr(module, definition)) return NOT_FOUND;
#define FIND(kernel) if (!strcmp(name, #kernel)) return *function = emulated_##kernel, OK;
    KERNELS(FIND)
    return NOT_FOUND;
}
int cuLaunchKernel(Kernel function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **args, void **extra) {
    (void)stream;
    if (state()) return state();
    if (x == 0 || y != 1 || z != 1 || bx == 0 || bx > 1024 || by != 1 || bz != 1 || shared || extra) return 1;
    if (falls(&launches_left)) return broken = 1, OK; // Told by a later call, as by a device.
    function(args[0], x * bx, 0);
    return OK;
}
int cuGetErrorName(int error, const char **text) { (void)error; *text = "an error"; return OK; }
int cuGetErrorString(int error, const char **text) { *text = error == ILLEGAL_ADDRESS ? "illegal address" : "an error"; return OK; }

int nvrtcVersion(int *major, int *minor) { *major = 12; *minor = 0; return OK; }
int nvrtcGetNumSupportedArchs(int *count) { *count = 2; return OK; }
int nvrtcGetSupportedArchs(int *archs) { archs[0] = 75; archs[1] = 90; return OK; }
int nvrtcCreateProgram(char **program, const char *text, const char *name, int headers, const char **a, const char **b) {
    (void)name, (void)headers, (void)a, (void)b;
    *program = strdup(text);
    return OK;
}
int nvrtcCompileProgram(char *program, int count, const char **options) {
    (void)program;
    compiled++;
    return count == 1 && !strcmp(options[0], "--gpu-architecture=compute_90") ? OK : 6;
}
int nvrtcGetPTXSize(char *program, size_t *bytes) { *bytes = strlen(program) + 1; return OK; }
int nvrtcGetPTX(char *program, char *text) { strcpy(text, program); return OK; }
int nvrtcGetProgramLogSize(char *program, size_t *bytes) { (void)program; *bytes = 1; return OK; }
int nvrtcGetProgramLog(char *program, char *text) { (void)program; *text = 0; return OK; }
int nvrtcDestroyProgram(char **program) { free(*program); return OK; }
