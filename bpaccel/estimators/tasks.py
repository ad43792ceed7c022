"""What scikit-learn's own callbacks (`sklearn.callback`, experimental) are told of a fit.

A fit is a task of theirs, and each epoch, or iteration of L-BFGS, is one within it.
"""

from typing import Any

from bpaccel.training.callback import Callback

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # it is experimental, and may move

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """In the place of scikit-learn's, where there is none."""


class SklearnCallbacks(Callback):
    """scikit-learn's callbacks as one of ours.

    Parameters
    ----------
    fit : Fit
        Which says what a task within it is called, and whether it is `stopping`.
    X, y, sample_weight : arrays
        As the caller gave them.
    """

    def __init__(self, fit, X, y, sample_weight):
        self.fit, self.left = fit, 0
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._told = {"estimator": fit.estimator, "X": X, "y": y, "metadata": metadata}
        self._network: Any = None
        self._context: Any = None
        self._task: Any = None

    def begin(self, progress, resumed):
        estimator, self._network = self._told["estimator"], progress.network
        if hasattr(estimator, "_init_callback_context"):
            self._context = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self._context.call_on_fit_task_begin(**self._told)
            if hasattr(estimator, "_skl_callbacks"):  # else nobody is there to be told of the epochs
                self.left = estimator.max_iter
            if self.fit.task == "epoch":  # of L-BFGS, the first row comes before the first iteration
                self._begin_task()

    def __call__(self, progress):
        task, self._task = self._task, None
        stop = task is not None and task.call_on_fit_task_end(**self._told, reconstruction_attributes=self._fitted)
        if not stop and not self.fit.stopping:
            self._begin_task()
        return stop

    def end(self, progress, how):
        estimator = self._told["estimator"]
        if how == "failed" or (how == "diverged" and not estimator.early_stopping):
            return
        if self._task is not None:  # begun, and it did not come
            self._task.call_on_fit_task_end(estimator=estimator)
        if self._context is not None:
            self._context.call_on_fit_task_end(**self._told, reconstruction_attributes=self._fitted)

    def _begin_task(self):
        if self.left:
            self.left -= 1
            self._task = self._context.subcontext(task_name=self.fit.task)
            self._task.call_on_fit_task_begin(**self._told, reconstruction_attributes=self._fitted)

    def _fitted(self):
        """What a copy of the estimator needs to predict as it would now."""
        weights = self._network.weights
        return {"coefs_": [W[:-1, :] for W in weights], "intercepts_": [W[-1, :] for W in weights]}
