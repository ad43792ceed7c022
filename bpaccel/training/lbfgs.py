"""L-BFGS: SciPy's, over the sums that an engine computes."""

import math
import warnings

import numpy as np

from bpaccel.training.loop import DivergenceError

# SciPy's own ftol stops at a relative gain of 2e-9: ours go as far as the precision does.
GTOL, FTOL = 1e-8, 1e-15
# Where no further gain is found, the gradient should be nearly nothing beside the loss: a greater one is told of.
GREAT_GRADIENT = 1e-3


def check_minimise(clip, dropout):
    """Raise ValueError for what does not go with L-BFGS."""
    if clip is not None:
        raise ValueError("`clip` does not go with solver='lbfgs', whose line search needs the gradient as it is.")
    if dropout:
        raise ValueError("`dropout` does not go with solver='lbfgs', whose line search needs one and the same loss.")


class Minimisation:
    """The iterations of L-BFGS-B (SciPy's), over the engine's sums of all rows: each is a step of a `Loop`.

    The vectors are packed on the host in float64; loss and gradient are computed where the rows are. An iteration may
    look at the loss several times. `Progress.rate` has no effect.

    Parameters
    ----------
    options : dict, optional
        SciPy's, in place of ours.

    Attributes
    ----------
    result : scipy.optimize.OptimizeResult or None
        None if training was stopped before SciPy was done.
    """

    def __init__(self, options=None):
        self.options, self.result = options, None

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def __call__(self, loop):
        """Take the steps of a loop; returns how they ended: "steps", "callback" or "converged".

        Raises
        ------
        DivergenceError
            If the loss is not finite from the start.
        """
        try:
            from scipy.optimize import minimize
        except ImportError as error:
            raise ImportError("solver='lbfgs' needs SciPy: pip install scipy.") from error

        span, first = loop.span, loop.moment.step
        if first >= span.stop:
            return "steps"
        look = _Looks(loop)
        start = look.pack(loop.moment.weights)
        with loop.work.engine.held():
            loss, _ = look(start)
        if not math.isfinite(loss):
            message = f"the loss is {loss} at step {first}: X or y hold nan, infinite or very large values."
            raise DivergenceError(message, first, loop.history)
        if self._row(loop, look, start, first):
            return "callback"
        failure: list[BaseException] = []

        # SciPy gives the whole result to a parameter of this very name. It takes a StopIteration for the end, and a
        # callback's own must not be taken for ours.
        def after(intermediate_result):
            try:
                if self._row(loop, look, np.array(intermediate_result.x), loop.moment.step + 1):
                    raise StopIteration
            except StopIteration as error:
                if not loop.stopped:
                    failure.append(error)
                raise

        ours = {"maxfun": 20 * (span.stop - first), "gtol": GTOL, "ftol": FTOL}
        options = {"maxiter": span.stop - first, **(ours if self.options is None else self.options)}
        with loop.work.engine.held():
            result = minimize(look, start, jac=True, method="L-BFGS-B", callback=after, options=options)
        if failure:
            raise failure[0]
        self.result = result
        if loop.stopped:
            return "callback"
        if self._row(loop, look, np.array(result.x), loop.moment.step, last=True):
            return "callback"
        if result.status == 1:  # a limit was reached
            return "steps"
        if self.options is None:
            _warn_of_a_great_gradient(result, loop)
        return "converged"  # also where rounding leaves the line search no way down

    def _row(self, loop, look, vector, step, last=False):
        """Tell the loop of a step; returns whether its callbacks end the training."""
        due = (step % loop.span.every == 0 or last) and loop.history.step[-1:] != [step]
        loop.reached(step, look.unpack(vector), look.seen(vector) if due else None)
        return due and loop.ask()


class _Looks:
    """The objective as SciPy looks at it: a vector of float64 in, the loss and its gradient out."""

    def __init__(self, loop):
        self.work, self._interrupts = loop.work, loop.interrupts
        self._shapes = [W.shape for W in loop.moment.weights]
        self._seen: dict = {}

    def __call__(self, vector):
        work, weights = self.work, self.unpack(vector)
        with self._interrupts.free():
            sums = work.engine.sums(weights, None, 0, work.plan.n)
            updates, penalty = work.objective.finish(weights, sums)
            totals = np.append(work.rows.backend.to_numpy(sums.totals), float(penalty))
            gradient = -self.pack(updates)
        loss = float(work.objective.value(totals))
        self._seen[vector.tobytes()] = loss, float(totals[2] / totals[0])
        while len(self._seen) > 50:  # an iteration's point is one of its line search's, which looks at 20 at most
            del self._seen[next(iter(self._seen))]
        return loss, gradient

    def seen(self, vector):
        """Loss and error at a vector that was looked at."""
        return self._seen[vector.tobytes()]

    def unpack(self, vector):
        """The weight matrices of a vector, where the rows are."""
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
        rows, parts = self.work.rows, np.split(vector, ends)
        return [rows.backend.asarray(p.reshape(shape), rows.dtype) for p, shape in zip(parts, self._shapes)]

    def pack(self, arrays):
        """Matrices as a vector on the host."""
        to_numpy = self.work.rows.backend.to_numpy
        return np.concatenate([to_numpy(a).astype(np.float64).ravel() for a in arrays])


def _warn_of_a_great_gradient(result, loop):
    steepest = float(np.abs(result.jac).max())
    if steepest > GREAT_GRADIENT * max(1.0, abs(float(result.fun))):
        warnings.warn(
            f"L-BFGS found no further gain at step {loop.moment.step}, though the gradient is still {steepest:.3g}: "
            f"the loss, {float(result.fun):.6g}, is not at its least. Standardise X and y.",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
