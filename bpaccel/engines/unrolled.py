"""The fused pass for a network of few weights: the lesson written out for the shape it has.

Python's loops over units run while code is emitted, so that a pass over the rows is a straight line of instructions:
the sums of the updates stay in registers, and so does what is between a layer's inputs and its outputs. There is a
pass for each layer on the way forward, and one on the way back. The ways are kept apart because they wait for
different things: an activation is a long chain of operations, so that a pass forward takes many rows at a time; a
pass back keeps sums, for which it needs the registers, and takes half as many.
"""

from itertools import pairwise

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bpaccel.engines.lanes import (
    I64,
    Value,
    lanes_of,
    widened,
)
from bpaccel.engines.memory import (
    BYTES,
    LINE_BYTES,
    pointer,
    prefetch,
)
from bpaccel.engines.vmath import (
    ACTIVATIONS,
    exp_down,
    loss_value,
    output_delta,
)


@intrinsic
def lesson(typing, kind, w, loss, a, end, R, g, onto, x_ahead, y_ahead):
    """Set g to what rows 0 ... end of a stretch ask of the weights, and their totals after that; or add if ``onto``.

    The rows that lie at two addresses begin to arrive in the caches, a few with each pass over lanes: all at once, they
    would have to be waited for.
    """
    spec = kind.kind
    sizes, names, bias = spec.shape, spec.activations, spec.bias
    starts, count = [], 0  # where a layer's units begin, and where its weights do
    for layer, (I, O) in enumerate(pairwise(sizes)):
        starts.append((sum(sizes[:layer]), count))
        count += (I + bias) * O

    def code(context, builder, sig, args):
        rows = _Rows(builder, lanes_of(kind).vector, spec.width, *args[1:-3])
        with builder.if_then(builder.icmp_signed("==", args[-3], I64(0))):
            for p in range(count + 3):
                builder.store(ir.DoubleType()(0.0), pointer(builder, args[-4], I64(p), ir.DoubleType()))

        def forward(layer, inputs):
            """Outputs of lanes of inputs."""
            p, O = starts[layer][1], sizes[layer + 1]
            outputs = []
            for o in range(O):
                z = rows.weight(p + len(inputs) * O + o) if bias else rows.nothing
                for i, l in enumerate(inputs):
                    z = z + l * rows.weight(p + i * O + o)
                outputs.append(ACTIVATIONS[names[layer]][0](z))
            return _softmax(outputs) if names[layer] == "softmax" else outputs

        def backward(layer, inputs, deltas):
            """Add to the sums; the deltas below take the place of the inputs."""
            (unit, p), O = starts[layer], len(deltas)
            for i, l in enumerate(inputs):
                for o, delta in enumerate(deltas):
                    rows.add(p + i * O + o, l * delta)
                if layer > 0:
                    error = rows.nothing
                    for o, delta in enumerate(deltas):
                        error = error + delta * rows.weight(p + i * O + o)
                    rows.put(unit + i, error * ACTIVATIONS[names[layer - 1]][1](l))
            for o, delta in enumerate(deltas if bias else ()):
                rows.add(p + len(inputs) * O + o, delta)

        rows.load_weights(count)
        rows.mean_of = count + 2, sizes[-1]  # |error| is the mean over the outputs
        last = len(sizes) - 2
        for layer in range(last + 1):
            with rows.all():
                if layer == 0:
                    rows.fetch(args[-2], sizes[0])
                if layer == last:
                    rows.fetch(args[-1], sizes[-1])
                for o, l in enumerate(forward(layer, rows.units(starts[layer][0], sizes[layer]))):
                    rows.put(starts[layer][0] + sizes[layer] + o, l)

        with rows.summing(starts[last][1], count + 3):
            output, target = sum(sizes[:-1]), sum(sizes)
            (weight,) = rows.units(target + sizes[-1], 1)
            number = weight.of(args[2])
            rows.add(count, weight)
            deltas = []
            for l, y in zip(rows.units(output, sizes[-1]), rows.units(target, sizes[-1])):
                rows.add(count + 1, loss_value(spec, y, l, number) * weight)
                rows.add(count + 2, (y - l).abs() * weight)
                deltas.append(output_delta(spec, y, l, number) * weight)
            backward(last, rows.units(starts[last][0], sizes[last]), deltas)

        for layer in range(last - 1, -1, -1):
            with rows.summing(starts[layer][1], starts[layer + 1][1]):
                inputs = rows.units(starts[layer][0], sizes[layer])
                backward(layer, inputs, rows.units(starts[layer + 1][0], sizes[layer + 1]))
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.float64, *[types.int64] * 7), code


class _Rows:
    """A stretch of rows while code is emitted: its passes, its units, and the sums that a pass keeps."""

    def __init__(self, builder, vector, width, w, loss, a, end, R, g):
        self.builder, self.whole, self.width = builder, vector, width
        self.w, self.a, self.end, self.R, self.g = w, a, end, R, g

    def load_weights(self, count):
        element = self.whole.element
        self.weights = [self.builder.load(pointer(self.builder, self.w, I64(p), element)) for p in range(count)]

    @property
    def nothing(self):
        return Value(self.builder, ir.Constant(self.vector, [0.0] * self.vector.count))

    def weight(self, p):
        return self.nothing.of(self.weights[p])

    def fetch(self, address, columns):
        """Bring what lies where these rows would, if those of a stretch began at an address."""
        size = columns * self.width
        first = self.builder.add(address, self.builder.mul(self.r, I64(size)))
        for line in range(0, self.vector.count * size, LINE_BYTES):
            place = self.builder.inttoptr(self.builder.add(first, I64(line)), BYTES)
            prefetch(self.builder, place, write=False)

    def all(self):
        """A pass over the rows."""
        return _Pass(self, 0, 0, self.whole)

    def summing(self, first, stop):
        """A pass that adds its sums first ... stop to g when it is over."""
        return _Pass(self, first, stop, ir.VectorType(self.whole.element, self.whole.count // 2))

    def _unit(self, at):
        index = self.builder.add(self.builder.mul(self.R, I64(at)), self.r)
        return self.builder.bitcast(pointer(self.builder, self.a, index, self.vector.element), self.vector.as_pointer())

    def units(self, first, count):
        """The values of some units."""
        places = [self._unit(first + k) for k in range(count)]
        return [Value(self.builder, self.builder.load(place, align=self.width)) for place in places]

    def put(self, at, value):
        """Set a unit's."""
        self.builder.store(value.value, self._unit(at), align=self.width)

    def add(self, place, value):
        """Add to a sum of this pass."""
        held = self.sums[place]
        self.builder.store((Value(self.builder, self.builder.load(held)) + value).value, held)


class _Pass:
    def __init__(self, rows, first, stop, vector):
        self.rows, self.places, self.vector = rows, range(first, stop), vector

    def __enter__(self):
        rows = self.rows
        rows.vector = self.vector
        rows.sums = {p: cgutils.alloca_once_value(rows.builder, rows.nothing.value) for p in self.places}
        for held in rows.sums.values():
            rows.builder.store(rows.nothing.value, held)
        step = I64(rows.vector.count)
        self.loop = cgutils.for_range_slice(rows.builder, I64(0), rows.end, step, I64)
        rows.r, _ = self.loop.__enter__()

    def __exit__(self, *error):
        rows, builder = self.rows, self.rows.builder
        self.loop.__exit__(*error)
        for place, held in rows.sums.items():
            where = pointer(builder, rows.g, I64(place), ir.DoubleType())
            total = widened(builder, Value(builder, builder.load(held)).total())
            if place == rows.mean_of[0]:
                total = builder.fdiv(total, ir.DoubleType()(rows.mean_of[1]))
            builder.store(builder.fadd(builder.load(where), total), where)


def _softmax(sums):
    top = sums[0]
    for z in sums[1:]:
        top = top.where(top.more(z), z)
    parts = [exp_down(z - top) for z in sums]
    whole = parts[0]
    for e in parts[1:]:
        whole = whole + e
    return [e / whole for e in parts]
