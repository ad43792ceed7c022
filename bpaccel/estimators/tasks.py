"""Tasks: what scikit-learn's own callbacks (`sklearn.callback`, experimental) are told of a fit.

A fit is a task of theirs, and each epoch, or iteration of L-BFGS, is one within it.
"""

from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # it is experimental, and may move

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """In the place of scikit-learn's, where there is none."""


class Tasks:
    """The tasks of one fit. As a callback of the training loop it tells of the iterations of L-BFGS.

    Parameters
    ----------
    estimator : BaseMLP
    network : Network
        With the weights of the moment.
    name : str
        Of a task within the fit.
    X, y, sample_weight : arrays
        As the caller gave them.
    """

    def __init__(self, estimator, network, name, X, y, sample_weight):
        self.network, self.name, self.left = network, name, 0
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._told = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._fit: Any = None
        self._task: Any = None
        if hasattr(estimator, "_init_callback_context"):
            self._fit = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self._fit.call_on_fit_task_begin(**self._told)
            if hasattr(estimator, "_skl_callbacks"):  # else nobody is there to be told of the epochs
                self.left = estimator.max_iter

    def _fitted(self):
        """What a copy of the estimator needs to predict as it would now."""
        weights = self.network.weights
        return {"coefs_": [W[:-1, :] for W in weights], "intercepts_": [W[-1, :] for W in weights]}

    def begin(self):
        """Tell that an epoch begins, unless it was the last."""
        if self.left:
            self.left -= 1
            self._task = self._fit.subcontext(task_name=self.name)
            self._task.call_on_fit_task_begin(**self._told, reconstruction_attributes=self._fitted)

    def end(self):
        """Tell that an epoch has ended; returns whether someone says that it was the last."""
        task, self._task = self._task, None
        return task is not None and task.call_on_fit_task_end(**self._told, reconstruction_attributes=self._fitted)

    def __call__(self, progress):
        stop = self.end()
        if not stop:
            self.begin()
        return stop

    def close(self):
        """Tell that the fit has ended, and the epoch that was begun and did not come."""
        if self._task is not None:
            self._task.call_on_fit_task_end(estimator=self._told["estimator"])
        if self._fit is not None:
            self._fit.call_on_fit_task_end(**self._told, reconstruction_attributes=self._fitted)


class NoTasks:
    """In the place of `Tasks` where there is no fit to tell of: `partial_fit` is none."""

    def begin(self):
        pass

    def end(self):
        return False

    def close(self):
        pass
