// The kernels as a program, for processors that Python does not run on. tests/test_native_levels.py runs it under an
// emulator. It needs no C library, as the kernels need none.
//
// Standard input is a file that holds what Python's memory would hold: a call, then all that its arguments point to.
// What the kernel writes goes into the file. Where the call names no kernel, the program writes where its kernels are.
#include "kernels.cpp"

using bp::i64;

constexpr i64 PLACE = 1ll << 36, BYTES = 1ll << 28;  // where the file is in this program, and the most that it may hold
struct Call { void (*kernel)(i64, i64, i64, i64); i64 arguments[4]; };

// A call of Linux. Memory mapped from standard input has two arguments more, both of them 0.
#if defined(__x86_64__)
constexpr i64 MMAP = 9, EXIT = 60;
static i64 call_linux(i64 result, i64 a, i64 b = 0, i64 c = 0, i64 d = 0) {
    register i64 fourth __asm__("r10") = d, fifth __asm__("r8") = 0, sixth __asm__("r9") = 0;
    __asm__ volatile("syscall" : "+a"(result) : "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start: call run");
#else
constexpr i64 MMAP = 222, EXIT = 93;
static i64 call_linux(i64 number, i64 a, i64 b = 0, i64 c = 0, i64 d = 0) {
    register i64 which __asm__("x8") = number, result __asm__("x0") = a, second __asm__("x1") = b;
    register i64 third __asm__("x2") = c, fourth __asm__("x3") = d, fifth __asm__("x4") = 0, sixth __asm__("x5") = 0;
    __asm__ volatile("svc 0" : "+r"(result) : "r"(which), "r"(second), "r"(third), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "memory");
    return result;
}
__asm__(".globl _start\n_start: bl run");
#endif

// A table and what it points to, as whole numbers.
template <class T> static i64* describe(i64* out) {
    const bp::Table<T>& table = bp::table<T>;
    for (unsigned k = 0; k < sizeof table / sizeof(i64); k++) *out++ = ((const i64*)&table)[k];
    for (int k = 0; k < bp::Activations::count; k++) *out++ = (i64)table.activate[k];
    for (int k = 0; k < bp::Activations::count; k++) *out++ = (i64)table.slopes[k];
    for (int k = 0; k < bp::Activations::count; k++)
        for (int j = 0; j < bp::Losses::count; j++) *out++ = (i64)table.outputs[k][j];
    for (int k = 0; k < bp::Networks::count; k++) {
        *out++ = (i64)table.written[k].many;
        *out++ = (i64)table.written[k].few;
    }
    return out;
}

extern "C" __attribute__((used, noreturn)) void run() {
    constexpr i64 READ_WRITE = 3, SHARED_AND_FIXED = 0x11;
    const bool mapped = call_linux(MMAP, PLACE, BYTES, READ_WRITE, SHARED_AND_FIXED) == PLACE;
    if (mapped) {
        const Call call = *(Call*)PLACE;
        if (call.kernel) call.kernel(call.arguments[0], call.arguments[1], call.arguments[2], call.arguments[3]);
        else describe<double>(describe<float>((i64*)PLACE));
    }
    for (;;) call_linux(EXIT, !mapped);
}
