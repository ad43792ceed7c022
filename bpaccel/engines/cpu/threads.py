"""Threads that help the kernels: they wait for work, and are begun where none is idle.

Python's own ThreadPoolExecutor would serve, but to load it takes eight milliseconds, half of a first short training.
"""

import os
import threading
from queue import SimpleQueue


class Task:
    """A call that another thread makes."""

    def __init__(self, function, arguments):
        self._function, self._arguments, self._error = function, arguments, None
        self._running = threading.Lock()
        self._running.acquire()

    def run(self):
        try:
            self._function(*self._arguments)
        except BaseException as error:
            self._error = error
        finally:
            self._function = self._arguments = None  # what they hold may be large
            self._running.release()

    def wait(self):
        """Wait for the end of the call, and raise what it raised."""
        with self._running:
            if self._error is not None:
                raise self._error


class Helpers:
    """The helping threads of a process."""

    def __init__(self):
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._lock, self._idle = threading.Lock(), 0

    def submit(self, function, *arguments):
        """Have a thread call ``function(*arguments)``: a `Task`."""
        task = Task(function, arguments)
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:  # a daemon: it waits for ever, also when the process wants to end
                threading.Thread(target=self._work, name="bpaccel", daemon=True).start()
        self._tasks.put(task)
        return task

    def _work(self):
        while True:
            self._tasks.get().run()
            with self._lock:
                self._idle += 1


_lock = threading.Lock()
_owner, _helpers = None, None


def helpers():
    """The `Helpers` of this process: a forked child has none of the threads of its parent."""
    global _owner, _helpers
    with _lock:
        if _owner != os.getpid():
            _owner, _helpers = os.getpid(), Helpers()
        return _helpers


def _forget():
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
