"""Formulas in C++: accurate, the same bits in vectors and one number at a time, and true to the rows they come from."""

import ctypes
import dataclasses
import platform
import shutil
import subprocess
from pathlib import Path

import mpmath
import numpy as np
import pytest

from bpaccel import activations, losses, native
from bpaccel.formulas import rows
from bpaccel.native import build

DTYPES = ["float32", "float64"]
HEADERS = Path(native.__file__).parent
PROBE = Path(__file__).parent / "native" / "values.cpp"
ACTIVATIONS, LOSSES = rows.names()
PLAIN = [name for name in ACTIVATIONS if name != "softmax"]  # softmax is no function of one number
NUMBERS = {"huber": 0.3, "quantile": 0.9}  # of families


class Probe:
    """The functions of tests/native/values.cpp in one compiled library."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.function_names.restype = ctypes.c_char_p
        own = self.library.function_names().decode().split()
        self.names = [f"{kind} {name}" for kind in ("value", "slope") for name in ACTIVATIONS]
        self.names += [f"{kind} {name}" for kind in ("cost", "error") for name in LOSSES]
        self.names += ["plain_value sigmoid", "plain_slope sigmoid", *own]

    def __call__(self, name, x, l=None, d=0.0):
        """A function of numbers of one dtype; ``l`` and ``d`` are for those that take them."""
        size, n = x.size, -(-x.size // 16) * 16
        x, l = (np.resize(np.ascontiguousarray(a), n) for a in (x, x if l is None else l))
        out = np.empty_like(x)
        real = {"float32": ctypes.c_float, "float64": ctypes.c_double}[x.dtype.name]
        at = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, l, out)]
        call = getattr(self.library, f"values_{x.dtype.name}")
        call(self.names.index(name), at[0], at[1], real(d), at[2], ctypes.c_longlong(n))
        return out[:size]

    def sum_of_lanes(self, x):
        """The sum of as many numbers as a vector of 64 bytes holds."""
        call = getattr(self.library, f"sum_{x.dtype.name}")
        call.restype = {"float32": ctypes.c_float, "float64": ctypes.c_double}[x.dtype.name]
        return call(x.ctypes.data_as(ctypes.c_void_p))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the probe and its headers lie."""
    to = tmp_path_factory.mktemp("formulas")
    build.copy_sources(to)
    shutil.copy(PROBE, to)
    return to


@pytest.fixture(scope="module")
def probes(kernel_compiler, folder):
    """The probe in vectors, by level, for those that this processor runs."""
    target = build.TARGETS[build.host()]
    chosen = [library for library in target.libraries if library is not build.LEVEL]
    if platform.machine().lower() in ("x86_64", "amd64"):
        greatest = ctypes.CDLL(kernel_compiler.compile(target, build.LEVEL, str(folder), "level.cpp")).bp_level()
        chosen = [library for library in chosen if int(library.name[1:]) <= greatest]
    if not chosen:
        pytest.skip("this processor runs no level of the kernels")
    found = {}
    for library in chosen:
        named = dataclasses.replace(library, name=f"values-{library.name}")
        found[library.name] = Probe(kernel_compiler.compile(target, named, str(folder), PROBE.name))
    return found


@pytest.fixture(scope="module")
def probe(probes):
    """That of the greatest level."""
    return next(iter(probes.values()))


@pytest.fixture(scope="module")
def single(gnu_compiler, folder):
    """The probe one number at a time, by g++."""
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([gnu_compiler, *flags, PROBE.name, "-o", "single.so"], cwd=folder, check=True)
    return Probe(folder / "single.so")


def anything(dtype, n=1 << 14, seed=0):
    """Numbers of every size and sign, nan, infinity and 0."""
    random = np.random.default_rng(seed)
    with np.errstate(over="ignore", under="ignore"):
        wide = np.ldexp(
            random.uniform(-1, 1, n), random.integers(np.finfo(dtype).minexp, np.finfo(dtype).maxexp + 1, n)
        )
        x = np.concatenate([wide, random.normal(0, 3, n), random.uniform(-110, 110, n), random.uniform(-750, 750, n)])
        x[:: n // 8] = np.resize([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], x[:: n // 8].size)
        return x.astype(dtype)


def probabilities(dtype, n=1 << 14, seed=1):
    """Numbers from 0 to 1, the two and what is next to them included."""
    p = np.random.default_rng(seed).random(n).astype(dtype)
    p[: n // 4] = np.round(p[: n // 4])
    p[n // 4 : n // 2] **= 20
    p[-1], p[-2] = np.nextafter(np.array(1, dtype), 0), np.nextafter(np.array(0, dtype), 1)
    return p


# --- accuracy ---


def near(low, high, n, random, dtype):
    """Numbers between two, many of them near 0, and the neighbours of multiples of ln 2, where reductions change."""
    tiny = 10.0 ** random.uniform(-37 if dtype == "float32" else -300, 0, n // 4)
    steps = np.log(2) * np.arange(int(low / np.log(2)), int(high / np.log(2)) + 1)
    x = np.concatenate([random.uniform(low, high, n), random.normal(0, 2, n), tiny, -tiny, steps, -steps])
    x = x.astype(dtype)
    return x[(x >= low) & (x <= high)]


def positive(low, high, n, random, dtype):
    """Numbers between two positive ones, evenly by their logarithm, and many near 1."""
    x = np.concatenate([np.exp(random.uniform(np.log(low), np.log(high), n)), random.uniform(0.5, 2, n),
                        1 + random.normal(0, 1e-3, n // 4)])  # fmt: skip
    x = x.astype(dtype)
    return x[(x >= low) & (x <= high)]


def above_minus_1(low, high, n, random, dtype):
    """Numbers of all sizes above -1, many of them near -1 and near 0."""
    tiny = 10.0 ** random.uniform(-37 if dtype == "float32" else -300, 0, n)
    x = np.concatenate([tiny - 1, -tiny, tiny, random.uniform(-1, 3, n), 1 / tiny]).astype(dtype)
    return x[(x > low) & (x < high)]


def sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def elu(z):
    return z if z > 0 else mpmath.expm1(z)


def softplus(z):
    return mpmath.log1p(mpmath.exp(z))


# Name, what it is exactly, how numbers are drawn, the ends of the range in float32 and float64, and the most units in
# the last place that it may be off: in float32 the worst of 25 million numbers, in float64 of some 50,000.
ACCURACY = {
    "value sigmoid": (sigmoid, near, (-88, 110), (-750, 750), (2.3, 3.1)),
    "plain_value sigmoid": (sigmoid, near, (-110, 110), (-750, 750), (2.9, 2.9)),
    "logistic": (sigmoid, near, (-110, 110), (-750, 750), (3.4, 3.1)),
    "value tanh": (mpmath.tanh, near, (-20, 20), (-25, 25), (2.8, 2.7)),
    "value elu": (elu, near, (-110, 110), (-750, 750), (1.6, 1.5)),
    "value softplus": (softplus, near, (-110, 110), (-750, 750), (3.2, 3.3)),
    "value exp": (mpmath.exp, near, (-110, 88.7), (-750, 709.7), (1.7, 1.9)),
    "exp_down": (mpmath.exp, near, (-110, 0), (-750, 0), (1.7, 1.9)),
    "expm1": (mpmath.expm1, near, (-110, 88.7), (-750, 709.7), (2.9, 2.7)),
    "expm1_down": (mpmath.expm1, near, (-110, 0), (-750, 0), (1.6, 1.5)),
    "log": (mpmath.log, positive, (1e-45, 3e38), (5e-324, 1.7e308), (2.1, 2.1)),
    "log_nonnegative": (mpmath.log, positive, (1e-45, 3e38), (5e-324, 1.7e308), (2.1, 2.1)),
    "log1p": (mpmath.log1p, above_minus_1, (-1, 3e38), (-1, 1.7e308), (3.8, 2.9)),
    "log1p_unit": (mpmath.log1p, near, (0, 1), (0, 1), (2.9, 2.9)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACCURACY)
def test_functions_are_right_to_a_few_units_in_the_last_place(probe, name, dtype):
    exact, draw, *ranges, allowed = ACCURACY[name]
    random = np.random.default_rng(0)
    x = draw(*ranges[dtype == "float64"], 1000, random, dtype)
    worst = 0.0
    with mpmath.workprec(120):
        for number, got in zip(x, probe(name, x), strict=True):
            want = exact(mpmath.mpf(float(number)))
            unit = float(np.spacing(np.array(abs(float(want)), dtype)))  # that of subnormal numbers included
            worst = max(worst, abs(float((mpmath.mpf(float(got)) - want) / unit)))
    assert worst <= allowed[dtype == "float64"]


@pytest.mark.parametrize("name", ["value sigmoid", "plain_value sigmoid", "logistic"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_below_0_the_sigmoid_is_no_normal_number(probe, name, dtype):
    """So that it is 0 where subnormal numbers are flushed, as they are in kernels; and it never overflows."""
    low = {"float32": -87.4, "float64": -708.4}[dtype]
    x = np.array([low, low - 1, 2 * low, 1e4 * low, -np.inf], dtype)
    got = probe(name, x)
    assert np.all((got >= 0) & (got < np.finfo(dtype).smallest_normal))
    np.testing.assert_array_equal(probe(name, -x), np.ones(x.size))


# What comes of nan, infinity, -infinity, 0, -0 and large numbers.
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30]
ENDS = {
    "value tanh": (np.nan, 1, -1, 0.0, -0.0, 1, -1),
    "value softplus": (np.nan, np.inf, 0, np.log(2), np.log(2), 1e30, 0),
    "value elu": (np.nan, np.inf, -1, 0, 0, 1e30, -1),
    "value exp": (np.nan, np.inf, 0, 1, 1, np.inf, 0),
    "expm1": (np.nan, np.inf, -1, 0.0, -0.0, np.inf, -1),
    "log": (np.nan, np.inf, np.nan, -np.inf, -np.inf, np.log(1e30), np.nan),
    "log1p": (np.nan, np.inf, np.nan, 0.0, -0.0, np.log(1e30), np.nan),
    "sign": (np.nan, 1, -1, 0.0, -0.0, 1, -1),
    "magnitude": (np.nan, np.inf, np.inf, 0.0, 0.0, 1e30, 1e30),
    "square_root": (np.nan, np.inf, np.nan, 0.0, -0.0, 1e15, np.nan),
    "value relu": (np.nan, np.inf, 0, 0, 0, 1e30, 0),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENDS)
def test_special_numbers(probe, name, dtype):
    got = probe(name, np.array(SPECIAL, dtype))
    want = np.array(ENDS[name], dtype)
    np.testing.assert_allclose(got, want, rtol=2 * np.finfo(dtype).eps)
    if name in ("value tanh", "expm1", "log1p", "sign", "magnitude", "square_root"):  # the others have no sign to keep
        np.testing.assert_array_equal(np.signbit(got[3:5]), np.signbit(want[3:5]))


# What gives a number of nan: kernels write softmax out, the slopes and the error are no more than comparisons.
FORGETFUL = {"value softmax", "slope softmax", "slope identity", "slope relu", "slope leaky_relu", "error quantile"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_nan(probe, dtype):
    """Training must see that it went astray."""
    nan = np.full(16, np.nan, dtype)
    kept = {
        name
        for name in set(probe.names) - {"value softmax", "slope softmax"}
        if np.isnan(probe(name, nan, nan, 0.5)).all()
    }
    assert set(probe.names) - kept == FORGETFUL


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_two_numbers_nan_is_the_larger_and_the_smaller(probe, dtype):
    a, b = np.array([1, np.nan, 1, 2, np.nan], dtype), np.array([2, 1, np.nan, 1, np.nan], dtype)
    np.testing.assert_array_equal(probe("larger", a, b), np.maximum(a, b))
    np.testing.assert_array_equal(probe("smaller", a, b), np.minimum(a, b))


# --- the same bits everywhere ---


def compared(probe, other, dtype):
    """Functions that do not give the same bytes in two libraries, of numbers of all kinds; nan is nan."""
    z, y, l = anything(dtype), probabilities(dtype, 1 << 16, 1), probabilities(dtype, 1 << 16, 2)
    unlike = []
    for name in probe.names:
        kind, _, row = name.partition(" ")
        if row == "softmax":
            continue
        inputs = [(y, l), (z, z[::-1])] if kind in ("cost", "error") else [(z, z[::-1]), (y, l)]
        for x, beside in inputs:
            a, b = (library(name, x, beside, NUMBERS.get(row, 0.0)) for library in (probe, other))
            missing = np.isnan(a)
            if not (np.array_equal(missing, np.isnan(b)) and a[~missing].tobytes() == b[~missing].tobytes()):
                unlike.append(name)
    return unlike


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_levels_give_the_same_bytes(probes, dtype):
    first, *others = probes.values()
    if not others:
        pytest.skip("this processor runs one level alone")
    for other in others:
        assert compared(first, other, dtype) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_and_one_number_at_a_time_give_the_same_bytes(probe, single, dtype):
    """By two compilers, as a GPU and a processor are to have the same bits."""
    assert compared(probe, single, dtype) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_are_added_in_pairs(probes, dtype):
    """Those of the lower half with those of the upper half, until one is left."""
    lanes = 64 // np.dtype(dtype).itemsize
    x = np.random.default_rng(0).standard_normal(lanes).astype(dtype)
    want = x
    while want.size > 1:
        want = want[: want.size // 2] + want[want.size // 2 :]
    for probe in probes.values():
        assert probe.sum_of_lanes(x) == want[0]


# --- true to the rows ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PLAIN)
def test_activations_are_their_rows(probe, name, dtype):
    """In NumPy's float64, to a few eps of a value, and of 1 for slopes, where they are less."""
    row, eps, tiny = activations.get(name), np.finfo(dtype).eps, np.finfo(dtype).smallest_normal
    z = np.concatenate([near(-30, 30, 4000, np.random.default_rng(0), dtype), anything(dtype, 64)])
    with np.errstate(all="ignore"):
        a = row.function(z.astype(float)[:, None], np)[:, 0].astype(dtype)
        for kind, function, x, least in (("value", row.function, z, 0), ("slope", row.slope, a, 1)):
            want = function(x.astype(float)[:, None], np)[:, 0]
            off = abs(probe(f"{kind} {name}", x).astype(float) - want)
            finite = abs(want) < np.finfo(dtype).max
            assert np.sum(finite) > 0.9 * x.size
            assert np.all((off <= 4 * eps * np.maximum(abs(want), least) + tiny)[finite])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_rows(probe, name, dtype):
    eps, number = np.finfo(dtype).eps, NUMBERS.get(name)
    called = {"categorical": "log_loss"}.get(name, name if number is None else f"{name}:{number}")
    row = losses.get(called, {"categorical": "softmax", "log_loss": "sigmoid", "poisson": "exp"}.get(name, "identity"))
    y, l = probabilities(dtype, seed=1), probabilities(dtype, seed=2)
    wide = y.astype(float)[:, None], l.astype(float)[:, None]
    if name in ("log_loss", "categorical"):  # it clips by the eps of the dtype
        wide = wide[0], np.clip(wide[1], eps, 1 - eps)
    if name == "poisson":
        wide = wide[0], np.maximum(wide[1], np.finfo(dtype).smallest_normal)
    d = float(np.array(number or 0, dtype))
    for kind, function in (("cost", row.value), ("error", row.error)):
        with np.errstate(over="ignore"):
            want = function(*wide, np)[:, 0]
        got = probe(f"{kind} {name}", y, l, d).astype(float)
        finite = abs(want) < np.finfo(dtype).max
        assert np.all(abs(got - want)[finite] <= 4 * eps * (1 + abs(want[finite])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tuned_forms_are_the_plain_ones(probe, dtype):
    z, a = near(-87, 87, 20_000, np.random.default_rng(3), dtype), probabilities(dtype)
    tuned, plain = (probe(f"{kind} sigmoid", z) for kind in ("value", "plain_value"))
    assert np.all(abs(tuned - plain) <= 5 * np.spacing(plain))
    tuned, plain = (probe(f"{kind} sigmoid", a) for kind in ("slope", "plain_slope"))
    assert np.all(abs(tuned - plain) <= np.finfo(dtype).eps * abs(a))


def test_every_tuned_form_is_compared():
    """The test above knows them by name."""
    named = {row.name for row in activations.ACTIVATIONS.values() if row.tuned or row.tuned_slope}
    assert named == {"sigmoid"}


# --- GPUs ---


def test_nvidias_compiler_takes_the_same_text(nvrtc, folder):
    """All is inlined and stays in registers: there is no stack."""
    text = "".join(
        line
        for name in ("machine.hpp", "formulas.hpp", "rows.hpp")
        for line in (folder / name).read_text().splitlines(keepends=True)
        if not line.startswith(("#pragma once", "#include"))
    )
    calls = [f"bp::activation::{name}::{kind}(x)" for name in PLAIN for kind in ("value", "slope")]
    calls += [f"bp::loss::{name}::{kind}(x, y, y)" for name in LOSSES for kind in ("value", "error")]
    for real in ("float", "double"):
        text += f"""
extern "C" __global__ void all_{real}(const {real}* in, {real}* out) {{
    {real} x = in[threadIdx.x], y = in[threadIdx.x + 64];
    out[threadIdx.x] = {" + ".join(calls)};
}}
"""
    _, kernels = nvrtc.compile(text, ("-std=c++17", "-fmad=false"), "80")
    assert set(kernels) == {"all_float", "all_double"}
    assert all(kernel.stack == 0 and kernel.spills == 0 for kernel in kernels.values())
