"""Ctrl-C during a training: it ends the training, and never comes between two things that belong together."""

import contextlib
import signal


class Interrupts:
    """A context in which Ctrl-C waits for a moment that suits.

    The first Ctrl-C is raised at once within `free`, where the work can be thrown away, and else by the next `check`.
    A second one is raised wherever the program is, for it may hang. Outside the main thread, and where the program has
    a handler of its own for SIGINT, Python's rules are left as they are. A context within another one, that of a
    training in a callback, shares its Ctrl-C: it ends both.

    Attributes
    ----------
    pending : bool
        Whether a Ctrl-C has come that was not raised.
    """

    def __init__(self):
        self.pending = False
        self._free = self._raised = False
        self._outer, self._before = None, None

    def __enter__(self):
        handler = signal.getsignal(signal.SIGINT)
        if isinstance(getattr(handler, "__self__", None), Interrupts) or handler is signal.default_int_handler:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGINT, self._note)
                self._before = handler
                self._outer = getattr(handler, "__self__", None)
        return self

    def _note(self, number, frame):
        if self._free or self.pending:
            self._raise()
        self.pending = True

    def _raise(self):
        self.pending, self._raised = False, True
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def free(self):
        """A context in which Ctrl-C is raised at once."""
        self._free = True
        try:
            self.check()
            yield
        finally:
            self._free = False

    def check(self):
        """Raise the KeyboardInterrupt that waits, if there is one."""
        if self.pending:
            self._raise()

    def __exit__(self, kind, error, trace):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._outer is not None and (self.pending or self._raised):
            self._outer.pending = True
