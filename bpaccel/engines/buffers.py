"""Rows from host memory on their way to a GPU: two buffers, of which one is filled while a kernel reads the other."""

import numpy as np

# Rows are moved in buffers of at least so many bytes. It should be much beside the microseconds that a copy and a
# launch take to begin; how much the bus needs to run at full speed has not been measured.
BUFFER_BYTES = 64 * 2**20


class Buffers:
    """Two buffers in turn, for blocks of an engine's rows.

    Parameters
    ----------
    cupy : module
    rows : Rows
        On the host.
    layer_sizes : tuple of int
    group_rows : int
        A buffer holds a multiple of so many rows.

    Attributes
    ----------
    rows : int
        How many rows are moved at once, at most.
    """

    def __init__(self, cupy, rows, layer_sizes, group_rows):
        self._source, self._stream = rows, cupy.cuda.Stream(non_blocking=True)
        self._kernels = cupy.cuda.get_current_stream
        dtype, weighted = np.dtype(rows.dtype), rows.on_host(0, 1)[2] is not None
        row_bytes = (layer_sizes[0] + layer_sizes[-1] + weighted) * dtype.itemsize
        self.rows = group_rows * max(1, BUFFER_BYTES // (row_bytes * group_rows))
        held = min(self.rows, rows.n)
        shapes = (held, layer_sizes[0]), (held, layer_sizes[-1]), (held,) if weighted else None
        self.pair = [_Buffer(cupy, shapes, dtype) for _ in range(2)]

    def filled(self, start, stop, order):
        """Buffers with rows ``start:stop`` of an order, one after the other, while the kernels of the current stream
        use the one before.

        Yields
        ------
        number : {0, 1}
            Of `pair`: whose ``arrays`` hold X, y and weights.
        first, end : int
            The rows that it holds now, from its beginning on.
        """
        for k, first in enumerate(range(start, stop, self.rows)):
            buffer, end = self.pair[k % 2], min(first + self.rows, stop)
            buffer.fill(self._source.on_host(first, end, order), self._stream)
            self._kernels().wait_event(buffer.copied)
            yield k % 2, first, end
            buffer.used.record(self._kernels())

    def close(self):
        """Wait for the copies: whose memory goes to others next, also where an error has cut them short."""
        self._stream.synchronize()


class _Buffer:
    """Pinned memory, memory on the device, and events that say who has done."""

    def __init__(self, cupy, shapes, dtype):
        self._pinned: list = [None if shape is None else _pinned(cupy, shape, dtype) for shape in shapes]
        self.arrays: list = [None if shape is None else cupy.empty(shape, dtype) for shape in shapes]
        self.copied, self.used = cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)
        # A kernel launched before may still use this memory, which the pool has handed out in the order of its stream.
        self.used.record(cupy.cuda.get_current_stream())

    def fill(self, host, stream):
        """Copy rows here, on a stream."""
        self.copied.synchronize()  # before what it copies from changes
        stream.wait_event(self.used)  # before what a kernel reads changes
        for x, pinned, array in zip(host, self._pinned, self.arrays):
            if x is not None:
                pinned[: len(x)] = x
                array[: len(x)].set(pinned[: len(x)], stream=stream)
        self.copied.record(stream)


def _pinned(cupy, shape, dtype):
    """An array in memory that the device can read by itself, while the processor does something else."""
    size = int(np.prod(shape))
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(size * dtype.itemsize), dtype, size).reshape(shape)
