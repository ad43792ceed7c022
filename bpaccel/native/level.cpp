// Which of the libraries an x86-64 processor and its operating system run. Compiled for every x86-64 processor.
//
// The processor itself is asked, by cpuid and xgetbv: `__builtin_cpu_supports` needs a run-time library of the compiler.

#ifdef _WIN32
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct Registers {
    unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf) {
    Registers r;
    __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}

// A set of the registers that the operating system keeps when threads take turns.
unsigned kept_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

constexpr unsigned bit(int number) { return 1u << number; }
constexpr bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// Leaf 1, ecx. Where OSXSAVE is set, xgetbv may be used.
constexpr unsigned FMA = bit(12), MOVBE = bit(22), OSXSAVE = bit(27), AVX = bit(28), F16C = bit(29);
// Leaf 7, ebx.
constexpr unsigned BMI1 = bit(3), AVX2 = bit(5), BMI2 = bit(8);
constexpr unsigned AVX512F = bit(16), AVX512DQ = bit(17), AVX512CD = bit(28), AVX512BW = bit(30), AVX512VL = bit(31);
// Leaf 0x80000001, ecx.
constexpr unsigned LZCNT = bit(5);
// What the operating system keeps.
constexpr unsigned XMM = bit(1), YMM = bit(2), MASKS = bit(5), ZMM = bit(6) | bit(7);

#ifdef __APPLE__
constexpr bool HAS_V4 = false;  // macOS keeps ZMM only for a thread that has used it: no library is built for v4
#else
constexpr bool HAS_V4 = true;
#endif

}  // namespace

// 4: x86-64-v4, with AVX-512. 3: x86-64-v3, with AVX2 and FMA. 0: neither.
PUBLIC int bp_level() {
    if (cpuid(0).eax < 7 || cpuid(0x80000000).eax < 0x80000001) return 0;
    const Registers one = cpuid(1), seven = cpuid(7), extended = cpuid(0x80000001);
    if (!has(one.ecx, OSXSAVE)) return 0;
    const unsigned kept = kept_registers();
    const bool v3 = has(one.ecx, FMA | MOVBE | AVX | F16C) && has(seven.ebx, BMI1 | AVX2 | BMI2)
                    && has(extended.ecx, LZCNT) && has(kept, XMM | YMM);
    const bool v4 = HAS_V4 && v3 && has(seven.ebx, AVX512F | AVX512DQ | AVX512CD | AVX512BW | AVX512VL)
                    && has(kept, MASKS | ZMM);
    return v4 ? 4 : v3 ? 3 : 0;
}
