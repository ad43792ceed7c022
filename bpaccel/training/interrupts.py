"""Ctrl-C during a training: it ends the training, and never comes between two things that belong together."""

import contextlib
import signal


class Interrupts:
    """A context in which Ctrl-C waits for a moment that suits.

    The first Ctrl-C is raised at once within `free`, where the work can be thrown away, and else by the next `check`.
    A second one is raised wherever the program is, for it may hang. Outside the main thread, and where the program has
    a handler of its own for SIGINT, Python's rules are left as they are.
    """

    def __init__(self):
        self._pending = self._free = False
        self._before = None

    def __enter__(self):
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGINT, self._note)
                self._before = signal.default_int_handler
        return self

    def _note(self, number, frame):
        if self._free or self._pending:
            self._pending = False
            raise KeyboardInterrupt
        self._pending = True

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
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def __exit__(self, kind, error, trace):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.check()  # it came when the training had already ended: whoever called it is told
