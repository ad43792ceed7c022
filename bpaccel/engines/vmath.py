"""Mathematics on lanes, without a vector maths library: one exponential and one logarithm carry all of it.

    e ** x = 4 ** n * (1 + p),   n = round(x / ln 4),   p = e ** (x - n ln 4) - 1, a polynomial
    log x = k ln 2 + 2 atanh(s),   x = 2 ** k * m,   s = (m - 1) / (m + 1), a polynomial

Every function is within a few units in the last place in float32 and float64 (the tests say how many), subnormal
results included, and nan stays nan. Pairs are constants for (float32, float64). The coefficients are minimax ones,
by the Remez algorithm.

Below them stand activations and losses: the formulas of `bpaccel.activations` and `bpaccel.losses`, whose names they
share and which say what they mean.
"""

import math

from bpaccel.engines.lanes import lane_function

# Adding MAGIC rounds to a whole number n, and leaves n + the bias of the exponent in the low bits.
MAGIC = (1.5 * 2**23 + 127, 1.5 * 2**52 + 1023)
# 1 / ln 4; ln 2 and ln 4 in two parts, the first so short that its product with n is exact.
LOG4_E = 0.7213475204444817
LN2_HIGH = (0.693359375, 0.6931471803691238)
LN2_LOW = (-2.12194440e-4, 1.9082149292705877e-10)
LN4_HIGH, LN4_LOW = (tuple(2 * part for part in pair) for pair in (LN2_HIGH, LN2_LOW))
TINY = (2.0**-126, 2.0**-1022)  # the least normal number
# Where e ** x is 0 and infinite.
ZERO_BELOW, INFINITE_ABOVE = (-105.0, -747.0), (90.0, 711.0)

# (e ** r - 1 - r) / r ** 2 for |r| <= ln 2, to 2e-8 and 1e-17.
EXP = (
    (0.5000003463739024, 0.1666661414892007, 0.04166126843413454, 0.008336103170046278, 0.0014104469808475684,
     0.000196115984317176),
    (0.4999999999999993, 0.16666666666666938, 0.041666666666702185, 0.008333333333269735, 0.0013888888883564368,
     0.00019841269892896022, 2.480159083648136e-05, 2.7557300619305976e-06, 2.75561565780971e-07,
     2.505503673548147e-08, 2.1062450189508322e-09, 1.5935515223038257e-10),
)  # fmt: skip
# e ** r = (E + r O) / (E - r O) for |r| <= ln 2, with E and O polynomials in r ** 2: so r O / E = tanh(r / 2), to 4e-8
# and 1e-18.
EVEN = (
    (1.0, 0.0999134523805878383),
    (1.0, 0.113630001148633353, 0.00126194466514775217, 1.49934741047595569e-6),
)
ODD = (
    (0.499999983354394879, 0.00829069431523947223),
    (0.499999999999999999, 0.0151483339076500869, 0.0000630556180456026578),
)
# (atanh(s) / s - 1) / s ** 2 in s ** 2 <= 1 / 9, to 2e-8 and 2e-16.
ATANH = (
    (0.33333319425582886, 0.20003780722618103, 0.14118309319019318, 0.1342574954032898),
    (0.33333333333333487, 0.19999999999780063, 0.14285714338330496, 0.11111106278964857, 0.09091130554209872,
     0.07686637438179002, 0.0675117123587855, 0.05161334635249541, 0.08435350330548605),
)  # fmt: skip


def _polynomial(x, pair):
    """c[0] + c[1] x + c[2] x ** 2 ..."""
    *rest, value = pair[0 if x.float32 else 1]
    value = x.of(value)
    for c in reversed(rest):
        value = value * x + c
    return value


def _power(t):
    """2 ** n, where ``t`` is n + MAGIC: its low bits, shifted, are the exponent."""
    fraction = 23 if t.float32 else 52
    return t.from_bits(t.builder.shl(t.bits(), t.whole(fraction)))


def _inverse(power):
    """1 / power, of a power of two: the biased exponent, taken from twice the bias."""
    twice = power.whole(254 << 23 if power.float32 else 2046 << 52)
    return power.from_bits(power.builder.sub(twice, power.bits()))


def _halved(x):
    """2 ** n and r, for e ** x = 2 ** n * e ** r * 2 ** n: in halves, no power of two leaves the normal numbers."""
    t = x * LOG4_E + x.of(MAGIC)
    n = t - x.of(MAGIC)
    return _power(t), (x - n * x.of(LN4_HIGH)) - n * x.of(LN4_LOW)


def _reduced(x):
    """2 ** n and p, for e ** x = 2 ** n * (1 + p) * 2 ** n."""
    half, r = _halved(x)
    return half, r * r * _polynomial(r, EXP) + r


def exp(x):
    """e ** x, from 0 to infinity."""
    half, p = _reduced(x.at_least(ZERO_BELOW).at_most(INFINITE_ABOVE))
    return (half * p + half) * half


def exp_down(x):
    """e ** x for x <= 0."""
    half, p = _reduced(x.at_least(ZERO_BELOW))
    return (half * p + half) * half


def expm1_down(x):
    """e ** x - 1 for x <= 0."""
    half, p = _reduced(x.at_least((-20.0, -40.0)))  # -1 from here on
    power = half * half
    return power * p + (power - 1.0)


def log(x):
    """Natural logarithm for x >= 0."""
    small = x.less(TINY)
    scaled = (x * x.of((2.0**24, 2.0**54))).where(small, x)
    builder, fraction = x.builder, x.whole(23 if x.float32 else 52)
    # 2 ** k is what remains when the mantissa is taken to lie in sqrt(1/2) .. sqrt(2).
    above = builder.sub(scaled.bits(), x.of(math.sqrt(0.5)).bits())
    k = builder.ashr(above, fraction)
    m = x.from_bits(builder.sub(scaled.bits(), builder.shl(k, fraction)))
    magic = x.of((1.5 * 2**23, 1.5 * 2**52))
    k = x.from_bits(builder.add(magic.bits(), k)) - magic
    k = k - x.of((24.0, 54.0)).where(small, 0.0)
    f = m - 1.0
    s = f / (f + 2.0)
    value = k * x.of(LN2_HIGH) + (_atanh2(s) + k * x.of(LN2_LOW))
    value = x.of(-math.inf).where(builder.fcmp_ordered("==", x.value, x.of(0.0).value), value)
    return value.where(x.less(math.inf), x)


def _atanh2(s):
    """2 atanh(s) for |s| <= 1 / 3."""
    return (s * s * s * _polynomial(s * s, ATANH) + s) * 2.0


def log1p_unit(u):
    """log(1 + u) for 0 <= u <= 1."""
    return _atanh2(u / (u + 2.0))


# --- activations: outputs from sums, and slopes from outputs ---


def sigmoid(z):
    # up / (up + down), where e ** z = up / down: the division that the sigmoid needs serves e ** r as well, and a
    # quotient of two short polynomials is as near to it as one of twice their length. Nothing is told apart by sign.
    half, r = _halved(z.at_least((-170.0, -1400.0)).at_most((170.0, 1400.0)))
    even, odd = _polynomial(r * r, EVEN), r * _polynomial(r * r, ODD)
    up = (even + odd) * half
    # A division, because it runs beside the multiplications: Newton's method in its place was measured slower.
    return up / ((even - odd) * _inverse(half) + up)


def tanh(z):
    # Of -2|z|, where nothing is lost to cancellation; the sign comes back last.
    e = expm1_down(z.abs() * -2.0)
    a = e / (e + 2.0)
    return a.where(z.less(0.0), -a)


def softplus(z):
    return z.at_least(0.0) + log1p_unit(exp_down(-z.abs()))


ACTIVATIONS = {
    "sigmoid": (sigmoid, lambda a: a * (1.0 - a)),
    "tanh": (tanh, lambda a: 1.0 - a * a),
    "relu": (lambda z: z.at_least(0.0), lambda a: a.of(1.0).where(a.more(0.0), 0.0)),
    "identity": (lambda z: z, lambda a: a.of(1.0)),
    "softmax": (lambda z: z, None),  # couples the outputs of a row: the kernel's own affair
    "leaky_relu": (lambda z: z.where(z.more(0.0), z * 0.01), lambda a: a.of(1.0).where(a.more(0.0), 0.01)),
    "elu": (lambda z: z.where(z.more(0.0), expm1_down(-z.abs())), lambda a: a.of(1.0).where(a.more(0.0), a + 1.0)),
    "softplus": (softplus, lambda a: -expm1_down(-a)),
    "exp": (exp, lambda a: a),
}


# --- losses: value and error from target and output; ``d`` is the number of huber:d and quantile:d ---


def _clipped(l):
    return l.at_least((2.0**-23, 2.0**-52)).at_most((1.0 - 2.0**-23, 1.0 - 2.0**-52))


def _binary(y, l, d):
    p = _clipped(l)
    return -(y * log(p) + (1.0 - y) * log(1.0 - p))


def _huber(y, l, d):
    a = (y - l).abs()
    return (d * (a - d * 0.5)).where(a.more(d), a * a * 0.5)


def _sign(e):
    """The sign of e, 0 for 0, and nan for nan."""
    return e.of(1.0).where(e.more(0.0), e.of(-1.0).where(e.less(0.0), e))


def _quantile_error(y, l, d):
    return d.where(y.more(l), (d - 1.0).where(y.less(l), 0.0))


def _poisson(y, l, d):
    l = l.at_least(TINY)
    some = y.more(0.0)
    return (y * (log(y.where(some, 1.0)) - log(l))).where(some, 0.0) - y + l


# The third: the output activation whose slope cancels the error's, so that the delta is y - l.
LOSSES = {
    "squared_error": (lambda y, l, d: (y - l) * (y - l) * 0.5, lambda y, l, d: y - l, None),
    "log_loss": (_binary, None, "sigmoid"),
    "absolute_error": (lambda y, l, d: (y - l).abs(), lambda y, l, d: _sign(y - l), None),
    "huber": (_huber, lambda y, l, d: (y - l).at_least(-d).at_most(d), None),
    "quantile": (lambda y, l, d: ((y - l) * d).where(y.more(l), (y - l) * (d - 1.0)), _quantile_error, None),
    "poisson": (_poisson, lambda y, l, d: y / l.at_least(TINY) - 1.0, "exp"),
}


def loss_value(spec, y, l, d):
    """What outputs cost: lanes from targets, outputs and the loss's number."""
    if spec.output == "softmax":
        return -(y * log(_clipped(l)))
    return LOSSES[spec.loss][0](y, l, d)


def output_delta(spec, y, l, d):
    """The delta of an output: its error times its slope, or y - l where these cancel."""
    _, error, cancels = LOSSES[spec.loss]
    if spec.output == "softmax" or spec.output == cancels:
        return y - l
    return error(y, l, d) * ACTIVATIONS[spec.output][1](l)


# --- what kernels call ---


# A kind of these two names its activation as the output's.


@lane_function
def activate(spec, z):
    """Outputs of sums."""
    return ACTIVATIONS[spec.output][0](z)


@lane_function
def through_slope(spec, error, l):
    """A hidden layer's error times its slope, which is taken from its output."""
    return error * ACTIVATIONS[spec.output][1](l)


@lane_function
def delta_of(spec, y, l, w, d):
    """An output's delta, weighted."""
    return output_delta(spec, y, l, y.of(d)) * w


@lane_function
def cost_of(spec, y, l, w, d):
    """An output's loss, weighted."""
    return loss_value(spec, y, l, y.of(d)) * w


@lane_function
def miss_of(spec, y, l, w):
    """An output's |y - l|, weighted."""
    return (y - l).abs() * w


@lane_function
def greatest(spec, a, b):
    """The greater of two."""
    return a.where(a.more(b), b)


@lane_function
def exp_of_difference(spec, a, b):
    """e ** (a - b), for a <= b."""
    return exp_down(a - b)


@lane_function
def ratio(spec, a, b):
    """a / b"""
    return a / b
