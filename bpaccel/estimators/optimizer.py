"""Optimizer: where a training stands beside the weights, under scikit-learn's names."""

import math

from bpaccel.solvers import Adam, AdamW, GradientDescent, Momentum, Nesterov, RMSprop, Solver


def solver_of(estimator):
    """The `Solver` that an estimator's parameters ask for."""
    name = estimator.solver
    if isinstance(name, Solver):
        return name
    if name == "sgd":
        kind = Nesterov if estimator.nesterovs_momentum else Momentum
        return kind(estimator.momentum) if estimator.momentum else GradientDescent()
    if name == "rmsprop":
        return RMSprop(epsilon=estimator.epsilon)
    return {"adam": Adam, "adamw": AdamW}[name](estimator.beta_1, estimator.beta_2, estimator.epsilon)


def words_for(solver):
    """The parameters of scikit-learn's estimators that ask for a `Solver`; None where there are none."""
    if type(solver) is Adam:
        return {"solver": "adam", "beta_1": solver.beta_1, "beta_2": solver.beta_2, "epsilon": solver.epsilon}
    if type(solver) is GradientDescent:
        return {"solver": "sgd", "momentum": 0.0}
    if type(solver) in (Momentum, Nesterov):
        return {"solver": "sgd", "momentum": solver.momentum, "nesterovs_momentum": type(solver) is Nesterov}
    return None


class Optimizer:
    """Where a training stands beside the weights: what `partial_fit` goes on from.

    Those who know scikit-learn's optimizers find their names here: the hyperparameters, the running means ``ms``,
    ``vs`` and ``velocities``, and a ``learning_rate`` that may be set between two calls of `partial_fit`.

    Parameters
    ----------
    solver : Solver
    learning_rate_init, power_t : float
    lr_schedule : {"constant", "invscaling", "adaptive"}

    Attributes
    ----------
    rate : float
        What the next epoch's steps are multiplied with.
    t, epochs : int
        Steps taken, and whole epochs.
    state : tuple of lists of arrays, or None
        The solver's, where the rows were.
    first : tuple (step, epoch)
        What the last training began with.
    order : tuple (epoch, order of rows), or None
        Of the last epoch: the next one shuffles it.
    split : tuple (train, kept) of numpy.ndarray of int, or None
        Which rows of the last `fit` were set aside.
    rules : dict
        What a fit that goes on must share.
    """

    def __init__(self, solver, learning_rate_init, lr_schedule="constant", power_t=0.5):
        self.solver, self.lr_schedule, self.power_t = solver, lr_schedule, power_t
        self._rate_init = self.rate = float(learning_rate_init)
        self.t, self.state = 0, None
        self.epochs, self.first, self.order, self.split, self.rules = 0, (0, 0), None, None, {}

    @classmethod
    def of(cls, estimator):
        """What an estimator's parameters ask for; a solver of one's own has no schedule."""
        schedule = estimator.learning_rate if estimator.solver == "sgd" else "constant"
        return cls(solver_of(estimator), estimator.learning_rate_init, schedule, estimator.power_t)

    @property
    def learning_rate_init(self):
        return self._rate_init

    @learning_rate_init.setter
    def learning_rate_init(self, rate):
        self._rate_init = float(rate)
        if isinstance(self.solver, Adam):  # there it is what each step starts from
            self.rate = float(rate)

    @property
    def learning_rate(self):
        """The rate, as scikit-learn shows it: Adam's with the correction of its first steps."""
        if isinstance(self.solver, Adam) and self.t:
            return self.rate * math.sqrt(1 - self.solver.beta_2**self.t) / (1 - self.solver.beta_1**self.t)
        return self.rate

    @learning_rate.setter
    def learning_rate(self, rate):
        if not isinstance(self.solver, Adam):  # which makes its own at each step, from learning_rate_init
            self.rate = float(rate)

    @property
    def momentum(self):
        return getattr(self.solver, "momentum", 0.0)

    @property
    def nesterov(self):
        return type(self.solver) is not Momentum  # without momentum it makes no difference

    @property
    def beta_1(self):
        return self.solver.beta_1

    @property
    def beta_2(self):
        return self.solver.beta_2

    @property
    def epsilon(self):
        return self.solver.epsilon

    @property
    def ms(self):
        """Running means of the gradients by the coefficients, then by the intercepts."""
        return [-m for m in self._kept(Adam, 0)]  # of ours, minus the gradients

    @property
    def vs(self):
        """Running means of their squares."""
        return self._kept(Adam, 1)

    @property
    def velocities(self):
        """The last changes of the coefficients, then of the intercepts."""
        return self._kept(Momentum, 0)

    def _kept(self, kind, index):
        if not isinstance(self.solver, kind):
            raise AttributeError(f"{type(self.solver).__name__} keeps no such arrays.")
        group = [] if self.state is None else self.state[index]
        return [W[:-1, :] for W in group] + [W[-1, :] for W in group]

    def keep(self, moment, plan):
        """Take over where a `Loop` stands, all of it of one step, and what its `Epochs` need to go on."""
        self.t, self.state, self.rate = moment.step, moment.arrays, moment.rate
        self.epochs, self.order = plan.epoch(moment.step), plan.last()

    def rate_after(self, rows_seen, rate):
        """The rate after so many rows in all, as the schedule has it."""
        if self.lr_schedule == "invscaling":
            return self.learning_rate_init / (rows_seen + 1) ** self.power_t
        return rate

    def stop(self, why, rate, verbose):
        """Whether to stop, as nothing improves, and the rate to go on with: a smaller one, if it is adaptive."""
        adaptive = self.lr_schedule == "adaptive"
        stop = not adaptive or rate <= 1e-6
        if not stop:
            rate /= 5.0
        if verbose:
            what = f"Setting learning rate to {rate:f}" if not stop else "Stopping."
            print(f"{why} {'Learning rate too small. ' if stop and adaptive else ''}{what}")
        return stop, rate

    def __getstate__(self):
        # An entry for each row is much for a pickle: a fit goes on from a checkpoint there.
        return self.__dict__ | {"order": None, "split": None}
