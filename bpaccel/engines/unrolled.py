"""The fused pass for a network of few weights: the lesson itself, written out for the shape it has.

Python's loops over layers and units run while code is emitted, so that what is compiled is a straight line for one
lane's worth of rows: values, deltas and the sums of the updates stay in registers.
"""

from itertools import pairwise

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bpaccel.engines.lanes import I64, LanesType, Value, _pointer, _widened, lanes_of
from bpaccel.engines.vmath import ACTIVATIONS, exp_down, loss_value, output_delta


@intrinsic
def lesson(typing, kind, w, loss, a, end, R, g):
    """Add what rows 0 ... end of a stretch ask of the weights to g, and their totals after that."""
    spec, vector = kind.kind, lanes_of(kind).vector
    sizes, bias = spec.shape, spec.bias

    def code(context, builder, sig, args):
        _, w, loss, a, end, R, g = args
        nothing = Value(builder, ir.Constant(vector, [0.0] * vector.count))
        count = sum((i + bias) * o for i, o in pairwise(sizes))
        weights = [nothing.of(builder.load(_pointer(builder, w, I64(p), vector.element))) for p in range(count)]
        number = nothing.of(loss)
        sums = [cgutils.alloca_once_value(builder, nothing.value) for _ in range(count + 3)]

        def add(place, value):
            builder.store((Value(builder, builder.load(sums[place])) + value).value, sums[place])

        with cgutils.for_range_slice(builder, I64(0), end, I64(vector.count), I64) as (r, _):

            def unit(at):
                where = _pointer(builder, a, builder.add(builder.mul(R, I64(at)), r), vector.element)
                pointer = builder.bitcast(where, vector.as_pointer())
                return Value(builder, builder.load(pointer, align=spec.width))

            # forward
            layers, p = [[unit(d) for d in range(sizes[0])]], 0
            for I, O, name in zip(sizes, sizes[1:], spec.activations):
                layer = []
                for o in range(O):
                    z = weights[p + I * O + o] if bias else nothing
                    for i, l in enumerate(layers[-1]):
                        z = z + l * weights[p + i * O + o]
                    layer.append(ACTIVATIONS[name][0](z))
                layers.append(_softmax(layer) if name == "softmax" else layer)
                p += (I + bias) * O

            # the error of the outputs
            first = sum(sizes)
            weight = unit(first + sizes[-1])
            filling = weight.less(0.0)
            add(count, weight.at_least(0.0))
            deltas = []
            for o, l in enumerate(layers[-1]):
                y = unit(first + o)
                add(count + 1, nothing.where(filling, loss_value(spec, y, l, number) * weight))
                add(count + 2, nothing.where(filling, (y - l).abs() * weight))
                deltas.append(nothing.where(filling, output_delta(spec, y, l, number) * weight))

            # backward
            for layer in range(len(sizes) - 2, -1, -1):
                I, O = sizes[layer], sizes[layer + 1]
                p -= (I + bias) * O
                below = []
                for i, l in enumerate(layers[layer]):
                    error = nothing
                    for o, delta in enumerate(deltas):
                        add(p + i * O + o, l * delta)
                        error = error + delta * weights[p + i * O + o]
                    if layer > 0:
                        below.append(error * ACTIVATIONS[spec.activations[layer - 1]][1](l))
                if bias:
                    for o, delta in enumerate(deltas):
                        add(p + I * O + o, delta)
                deltas = below

        for place, held in enumerate(sums):
            where = _pointer(builder, g, I64(place), ir.DoubleType())
            value = _widened(builder, Value(builder, builder.load(held)).total())
            if place == count + 2:
                value = builder.fdiv(value, ir.DoubleType()(sizes[-1]))
            builder.store(builder.fadd(builder.load(where), value), where)
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.float64, types.int64, types.int64, types.int64, types.int64), code


def _softmax(sums):
    top = sums[0]
    for z in sums[1:]:
        top = top.where(top.more(z), z)
    parts = [exp_down(z - top) for z in sums]
    whole = parts[0]
    for e in parts[1:]:
        whole = whole + e
    return [e / whole for e in parts]
