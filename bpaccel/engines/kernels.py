"""What engines with CUDA kernels of their own share: the device, and the way of arrays to CuPy and back.

CuPy compiles and launches the kernels. Arrays of torch and JAX on a CUDA device enter and leave by DLPack, without a
copy.
"""

import importlib

from bpaccel.engines import Engine
from bpaccel.libraries import why_not

# What a library calls the number that the CUDA driver knows a device by.
NUMBERS = {"cupy": "id", "torch": "index", "jax": "local_hardware_id"}
# XLA takes for granted that what it is given begins at a multiple of so many bytes.
ALIGNMENT = 16


class Kernels(Engine):
    """An engine that launches CUDA kernels where the rows are.

    Attributes
    ----------
    cupy : module
    device : cupy.cuda.Device
        Where the rows are. It is made the current one for as long as the engine works: of the three libraries only
        CuPy has a current device that follows its arrays.
    """

    def __init__(self, objective, rows, threads=None):
        super().__init__(objective, rows, threads)
        self.cupy = self.library()
        number = NUMBERS.get(rows.backend.library.name)
        self.device = self.cupy.cuda.Device(None if number is None else getattr(rows.backend.device, number))

    @classmethod
    def library(cls):
        """The module that launches kernels: CuPy."""
        return importlib.import_module("cupy")

    @classmethod
    def reaches(cls, backend):
        """Whether arrays of a backend are in a CUDA device's memory."""
        place = str(backend.device).lower()  # "cuda:0" on torch and JAX
        return backend.library.name == "cupy" or (backend.library.name in ("torch", "jax") and place.startswith("cuda"))

    @classmethod
    def trouble(cls):
        """Why kernels cannot be launched here, in words; None where they can."""
        return why_not("cupy")

    @classmethod
    def out_of_reach(cls, backend):
        """Why arrays of a backend cannot be given to a kernel here, with the remedy; None where they can."""
        if not cls.reaches(backend):
            return (f"it computes on a CUDA device, and the rows are on {backend.name}. Use backend='cupy', or give "
                    "CuPy arrays.")  # fmt: skip
        if trouble := cls.trouble():
            return f"it needs CuPy, which is {trouble}."
        return None

    # DLPack also makes CuPy's stream wait for what torch and JAX have still to compute, and theirs for ours.
    def entered(self, arrays):
        """Arrays of the backend as CuPy's, in the same memory: a list, with None where there is none."""
        own = self.cupy.ndarray
        return [x if x is None or isinstance(x, own) else self.cupy.from_dlpack(x) for x in arrays]

    def left(self, x):
        """An array of CuPy's as the backend's: in the same memory, unless the backend lacks its dtype, or JAX is given
        a part of an array that it could not read where it is."""
        backend = self.rows.backend
        if x.dtype.name not in backend.floats:
            x = x.astype(backend.widest)
        if backend.library.name == "cupy":
            return x
        if backend.library.name == "jax" and x.data.ptr % ALIGNMENT:
            x = x.copy()
        return backend.xp.from_dlpack(x)
