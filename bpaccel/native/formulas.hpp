// The elementary functions that printed rows (rows.hpp) consist of, and tuned forms that rows name.
//
// Each is a template over numbers V (machine.hpp), calls no library and has no branch: one text serves a processor's
// vectors, a GPU's threads and WebAssembly. A plain name holds for any number; a function with a longer one holds where
// its comment says, and is shorter. nan stays nan. Odd functions keep the sign of a 0.
//
//     e ** x = 4 ** n * e ** r,        n = round(x / ln 4),  |r| <= ln 2
//     log x  = k ln 2 + 2 atanh(s),    x = 2 ** k * m,  sqrt(1/2) <= m < sqrt(2),  s = (m - 1) / (m + 1)
//
// What remains is a polynomial in r or s ** 2, or a quotient of two. Coefficients are minimax ones, found by the Remez
// exchange algorithm and rounded to the type. Beside them stands the greatest relative error that they leave in the
// function, in float and in double, without what its evaluation rounds: that is 2 ** -24 or 2 ** -53 an operation.
#pragma once

#include "machine.hpp"

namespace bp {

// --- numbers, and their bits ---

template <class V> FORMULA V all(Real<V> x) { return x - V{}; }  // in all lanes: x - 0 is x, whatever its sign
template <class V> FORMULA Bits<V> whole(typename Number<V>::B i) { return i - Bits<V>{}; }
template <class V> FORMULA Bits<V> bits(V x) { return __builtin_bit_cast(Bits<V>, x); }
template <class V> FORMULA V from_bits(Bits<V> i) { return __builtin_bit_cast(V, i); }

template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

// A row's constant that differs by dtype, as those of finfo do.
template <class T> FORMULA constexpr T either(double single, double wide) { return T(same<T, float> ? single : wide); }

// c + c1 x + c2 x ** 2 ..., by Horner's rule.
template <class V> FORMULA V polynomial(V, Real<V> c) { return all<V>(c); }
template <class V, class... C> FORMULA V polynomial(V x, Real<V> c, C... more) {
    return fma(polynomial(x, more...), x, all<V>(c));
}

template <class T> struct Constants;

template <> struct Constants<float> {
    // The format of a number: how many bits its fraction has, what its exponent is stored with, and patterns of bits.
    static constexpr int fraction = 23, offset = 127;
    static constexpr unsigned magnitude_bits = 0x7fffffff, infinite_bits = 0x7f800000, root_half_bits = 0x3f3504f3;
    static constexpr float smallest_normal = 0x1p-126f;
    static constexpr float rounder = 0x1.8p23f;  // adding it rounds to an integer, which is in the low bits then

    static constexpr float log4_e = 0.7213475204444817f;                           // log(e) / log(4)
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;     // ln 2; k * ln2_high is exact
    static constexpr float zero_below = -105.f, infinite_above = 90.f;             // e ** x is 0, is infinite
    static constexpr float minus_one_below = -20.f;                                // e ** x - 1 is -1
    static constexpr float sure = 170.f;                                           // the sigmoid is 1, of -x it is 0
    static constexpr float log2_scale = 24.f, scale = 0x1p24f;                     // makes subnormal numbers normal

    // (e ** r - 1 - r) / r ** 2, |r| <= ln 2: e ** r to 2 ** -25.1, 2 ** -56.4; e ** r - 1 to 2 ** -24.0, 2 ** -53.7
    template <class V> FORMULA V exp_tail(V r) {
        return polynomial(r, 0.5000003463739024f, 0.1666661414892007f, 0.04166126843413454f, 0.008336103170046278f,
                          0.0014104469808475684f, 0.000196115984317176f);
    }
    // E and O of e ** r = (E + r O) / (E - r O), both in s = r ** 2, |r| <= ln 2: e ** r to 2 ** -24.6, 2 ** -58.4
    template <class V> FORMULA V even(V s) { return polynomial(s, 1.f, 0.0999134523805878383f); }
    template <class V> FORMULA V odd(V s) { return polynomial(s, 0.499999983354394879f, 0.00829069431523947223f); }
    // (atanh(s) / s - 1) / s ** 2, in s ** 2, |s| <= 1 / 3: atanh(s) to 2 ** -25.8, 2 ** -52.3
    template <class V> FORMULA V atanh_tail(V s) {
        return polynomial(s, 0.33333319425582886f, 0.20003780722618103f, 0.14118309319019318f, 0.1342574954032898f);
    }
};

template <> struct Constants<double> {
    static constexpr int fraction = 52, offset = 1023;
    static constexpr unsigned long long magnitude_bits = 0x7fffffffffffffff, infinite_bits = 0x7ff0000000000000,
                                        root_half_bits = 0x3fe6a09e667f3bcd;
    static constexpr double smallest_normal = 0x1p-1022;
    static constexpr double rounder = 0x1.8p52;

    static constexpr double log4_e = 0.7213475204444817;
    static constexpr double ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
    static constexpr double zero_below = -747., infinite_above = 711.;
    static constexpr double minus_one_below = -40.;
    static constexpr double sure = 1400.;
    static constexpr double log2_scale = 54., scale = 0x1p54;

    template <class V> FORMULA V exp_tail(V r) {
        return polynomial(r, 0.4999999999999993, 0.16666666666666938, 0.041666666666702185, 0.008333333333269735,
                          0.0013888888883564368, 0.00019841269892896022, 2.480159083648136e-05, 2.7557300619305976e-06,
                          2.75561565780971e-07, 2.505503673548147e-08, 2.1062450189508322e-09, 1.5935515223038257e-10);
    }
    template <class V> FORMULA V even(V s) {
        return polynomial(s, 1., 0.113630001148633353, 0.00126194466514775217, 1.49934741047595569e-6);
    }
    template <class V> FORMULA V odd(V s) {
        return polynomial(s, 0.499999999999999999, 0.0151483339076500869, 0.0000630556180456026578);
    }
    template <class V> FORMULA V atanh_tail(V s) {
        return polynomial(s, 0.33333333333333487, 0.19999999999780063, 0.14285714338330496, 0.11111106278964857,
                          0.09091130554209872, 0.07686637438179002, 0.0675117123587855, 0.05161334635249541,
                          0.08435350330548605);
    }
};

template <class T> FORMULA T infinite() { return from_bits<T>(Constants<T>::infinite_bits); }
template <class T> FORMULA T not_a_number() { return from_bits<T>(Constants<T>::magnitude_bits); }

template <class V> FORMULA V magnitude(V x) {
    return from_bits<V>(bits(x) & whole<V>(Constants<Real<V>>::magnitude_bits));
}
template <class V> FORMULA V copysign(V size, V sign) {
    const Bits<V> kept = whole<V>(Constants<Real<V>>::magnitude_bits);
    return from_bits<V>((bits(size) & kept) | (bits(sign) & ~kept));
}
template <class V> FORMULA V sign(V x) {  // 1, -1, or x itself where x is 0 or nan
    using T = Real<V>;
    return select(x > T(0), all<V>(1), select(x < T(0), all<V>(-1), x));
}
template <class V> FORMULA V larger(V a, V b) { return select((a < b) | (b != b), b, a); }
template <class V> FORMULA V smaller(V a, V b) { return select((a > b) | (b != b), b, a); }

// --- e ** x ---

// e ** x = power * e ** r * power, where power = 2 ** n: in two halves, no power of two leaves the normal numbers.
template <class V> struct Reduced { V power, r; };
template <class V> FORMULA Reduced<V> reduced(V x) {
    using K = Constants<Real<V>>;
    constexpr Real<V> rounder = K::rounder + K::offset;  // n is stored with the offset: moved up, it is an exponent
    const V t = fma(x, all<V>(K::log4_e), all<V>(rounder)), n = t - rounder;
    const V r = fma(n, all<V>(-2 * K::ln2_low), fma(n, all<V>(-2 * K::ln2_high), x));
    return {from_bits<V>(bits(t) << K::fraction), r};
}
template <class V> FORMULA V expm1_reduced(V r) {  // e ** r - 1 for |r| <= ln 2
    return fma(r * r, Constants<Real<V>>::exp_tail(r), r);
}

template <class V> FORMULA V exp_down(V x) {  // e ** x for x <= 0
    const Reduced<V> e = reduced(at_least(x, Constants<Real<V>>::zero_below));
    return fma(e.power, expm1_reduced(e.r), e.power) * e.power;
}
template <class V> FORMULA V exp(V x) { return exp_down(at_most(x, Constants<Real<V>>::infinite_above)); }

template <class V> FORMULA V expm1_down(V x) {  // e ** x - 1 for x <= 0
    const Reduced<V> e = reduced(at_least(x, Constants<Real<V>>::minus_one_below));
    const V power = e.power * e.power;
    return fma(power, expm1_reduced(e.r), power - Real<V>(1));
}
template <class V> FORMULA V expm1(V x) {  // e ** x - 1 = (1 - e ** -x) e ** x, where nothing cancels
    const V down = expm1_down(-magnitude(x));
    return copysign(select(x > Real<V>(0), down * exp(magnitude(x)), down), x);
}

// --- log x ---

template <class V> FORMULA V twice_atanh(V s) {  // for |s| <= 1 / 3
    return fma(s * s * s, Constants<Real<V>>::atanh_tail(s * s), s) * Real<V>(2);
}

template <class V> FORMULA V log_nonnegative(V x) {  // log x for x >= 0
    using K = Constants<Real<V>>;
    using T = Real<V>;
    constexpr auto one_bits = typename Number<V>::B(K::offset) << K::fraction;
    const auto small = x < K::smallest_normal;
    const V scaled = select(small, x * K::scale, x);
    const Bits<V> exponent = (bits(scaled) + whole<V>(one_bits - K::root_half_bits)) >> K::fraction;  // k + offset
    const V f = from_bits<V>(bits(scaled) - (exponent << K::fraction) + whole<V>(one_bits)) - T(1);   // m - 1
    const V k = from_bits<V>(bits(all<V>(K::rounder)) + exponent) - (K::rounder + K::offset)
              - select(small, all<V>(K::log2_scale), V{});
    const V tail = twice_atanh(quotient(f, f + T(2)));
    const V value = fma(k, all<V>(K::ln2_high), fma(k, all<V>(K::ln2_low), tail));
    const V end = all<V>(infinite<T>());
    return select(x < end, select(x == T(0), -end, value), x);
}
template <class V> FORMULA V log(V x) {
    using T = Real<V>;
    return select(x < T(0), all<V>(not_a_number<T>()), log_nonnegative(x));
}

template <class V> FORMULA V log1p_unit(V u) {  // log(1 + u) for 0 <= u <= 1
    return twice_atanh(quotient(u, u + Real<V>(2)));
}
// log(1 + x) from that of u, which is 1 + x rounded, and from what the rounding left (W. Kahan's way).
template <class V> FORMULA V log1p(V x) {
    using T = Real<V>;
    const V u = x + T(1), value = log(u), near = value * (x / (u - T(1)));
    return select(u == T(1), x, select(x < infinite<T>(), select(u == T(0), value, near), value));
}

// --- sigmoids ---

template <class V> FORMULA V tanh(V z) {  // of -2|z|, where nothing cancels
    using T = Real<V>;
    const V e = expm1_down(magnitude(z) * T(-2));
    return copysign(quotient(e, e + T(2)), z);
}

// 1 / (1 + e ** -z) = up / (up + down), where e ** z = up / down: the one division serves e ** r as well.
template <class V> FORMULA V logistic(V z) {
    using K = Constants<Real<V>>;
    const Reduced<V> e = reduced(at_most(at_least(z, -K::sure), K::sure));
    const V s = e.r * e.r, even = K::even(s), odd = K::odd(s);
    const V up = fma(e.r, odd, even) * e.power;
    const V inverse = from_bits<V>(whole<V>(typename Number<V>::B(2 * K::offset) << K::fraction) - bits(e.power));
    return quotient(up, fma(fma(-e.r, odd, even), inverse, up));
}

// In float32 the same from one reciprocal, 1 / (1 + 2 ** t): fewer instructions of a GPU, as many of a processor.
template <class V> FORMULA V logistic_of_powers(V z) {
    using K = Constants<Real<V>>;
    using T = Real<V>;
    if constexpr (!same<T, float>) return logistic(z);
    else {
        constexpr T rounder = K::rounder + K::offset, log2_e = 1.4426950408889634f, log2_e_low = 1.925963033500247e-08f;
        z = at_most(at_least(z, T(-88.3f)), T(87));  // down to where the result is subnormal: 0, if those are flushed
        const V t = fma(z, all<V>(-log2_e), all<V>(rounder)), n = t - rounder;
        const V r = fma(z, all<V>(-log2_e_low), fma(z, all<V>(-log2_e), -n));
        // 2 ** r for |r| <= 1/2, to 2 ** -27.2
        const V power = polynomial(r, 1.f, 0.6931471879265417f, 0.24022649795130868f, 0.055503574331057355f,
                                   0.009618237479037273f, 0.0013390735752147334f, 0.00015403516139789617f);
        return reciprocal(fma(power, from_bits<V>(bits(t) << K::fraction), all<V>(1)));
    }
}

template <class V> FORMULA V logistic_slope(V a) { return fma(-a, a, a); }  // a (1 - a)

// --- the delta of an output: what its loss sends back, times its slope; d is the number of huber:d, quantile:d ---

template <class F, class Loss, class V> FORMULA V output_delta(V y, V l, Real<V> d) {
    if constexpr (Loss::template cancels<F>) return y - l;
    else return Loss::error(y, l, d) * F::slope(l);
}

}  // namespace bp
