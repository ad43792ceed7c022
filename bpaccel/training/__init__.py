"""Training: one loop for all solvers, what it keeps, and how it goes on after it was cut short.

`run` reads the arguments of a training, `loop` owns its state, `descent` and `lbfgs` take the steps, `history` is what
was seen, `checkpoint` what a file holds of it.
"""

from bpaccel.training.loop import DivergenceError

__all__ = ["DivergenceError"]
