"""L-BFGS: SciPy's, over the sums that an engine computes."""

import math
import time

import numpy as np

from bpaccel.history import Progress, State
from bpaccel.training import DivergenceError, asked_to_stop, finish, shape_of


def check_minimise(clip, dropout):
    """Raise ValueError for what does not go with L-BFGS."""
    if clip is not None:
        raise ValueError("`clip` does not go with solver='lbfgs', whose line search needs the gradient as it is.")
    if dropout:
        raise ValueError("`dropout` does not go with solver='lbfgs', whose line search needs one and the same loss.")


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def minimise(network, weights, engine, plan, *, step, stop, every, callbacks, history, options=None):
    """Take at most ``stop - step`` iterations of L-BFGS-B (SciPy's), over the engine's sums of all rows.

    The vectors are packed on the host in float64; loss and gradient are computed where the rows are. A step is one
    iteration, which may look at the loss several times. `Progress.rate` has no effect. ``options`` are SciPy's, in
    place of ours.

    Returns
    -------
    scipy.optimize.OptimizeResult or None
        None if training was stopped before SciPy was done.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("solver='lbfgs' needs SciPy: pip install scipy.") from error

    backend, dtype = engine.rows.backend, engine.rows.dtype
    shapes = [W.shape for W in weights]
    began, first = time.perf_counter(), step
    looked = {}
    result = None

    def unpack(vector):
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = np.split(vector, ends)
        return [backend.asarray(p.reshape(shape), dtype) for p, shape in zip(parts, shapes)]

    def pack(arrays):
        return np.concatenate([backend.to_numpy(a).astype(np.float64).ravel() for a in arrays])

    def look(vector):
        weights = unpack(vector)
        sums = engine.sums(weights, None, 0, plan.n)
        updates, penalty = engine.objective.finish(weights, sums)
        totals = np.append(backend.to_numpy(sums.totals), float(penalty))
        loss = float(engine.objective.value(totals))
        looked[vector.tobytes()] = loss, float(totals[2] / totals[0])
        while len(looked) > 50:  # an iteration's point is one of its line search's, which looks at 20 at most
            del looked[next(iter(looked))]
        return loss, -pack(updates)

    def record(vector, last=False):
        due = step % every == 0 or last
        if due and history.step[-1:] != [step]:
            history.append(step, step, *looked[vector.tobytes()], 1.0, time.perf_counter() - began)
            if asked_to_stop(callbacks, Progress(network, history, step, 1.0, None, stop)):
                history.stopped = "callback"
                raise StopIteration  # SciPy takes it for the end, and returns what it has

    def after(result):
        nonlocal step
        step += 1
        network.weights = unpack(np.array(result.x))  # a copy: SciPy goes on in the same memory
        record(result.x)

    start = pack(weights)
    history.stopped = "steps"
    try:
        with engine.held():
            loss, _ = look(start)
        if not math.isfinite(loss):
            message = f"the loss is {loss} at step 0: X or y hold nan, infinite or very large values."
            history.stopped = "diverged"
            raise DivergenceError(message, first, history)
        record(start)
        with engine.held():
            # As far as the precision goes: SciPy's own ftol stops at a relative gain of 2e-9.
            ours = {"maxfun": 20 * (stop - first), "gtol": 1e-8, "ftol": 1e-15}
            options = {"maxiter": stop - first, **(ours if options is None else options)}
            result = minimize(look, start, jac=True, method="L-BFGS-B", callback=_named(after), options=options)
        network.weights = unpack(result.x)
        record(result.x, last=True)
        if history.stopped != "callback" and result.status != 1:  # 1: a limit was reached
            history.stopped = "converged"  # also where rounding leaves the line search no way down
    except StopIteration:  # at the first row, before SciPy was called
        pass
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    history.state = State(step, "lbfgs", None, plan, shape_of(engine.objective))
    finish(callbacks, network, history)
    return result


def _named(function):
    """SciPy gives a callback its whole result only if the parameter has this very name."""

    def callback(intermediate_result):
        function(intermediate_result)

    return callback
