"""Files that replace what was there before as a whole or not at all, and places that are checked before any work.

A file is written under a temporary name beside its place, and renamed when it is whole and on the disk. Who writes it
holds a lock on it, which the system takes back from a process that dies: what nobody holds is a leftover, and the next
that writes to the same place removes it. A temporary name is used once; so one that is gone after its file was locked
was taken for a leftover in between, and one that is still there was not.
"""

import contextlib
import os
import re
import stat
import sys
import time
import zlib
from errno import EINVAL, ENOSYS, ENOTSUP
from pathlib import Path

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

MOUNTS = "/proc/self/mountinfo"  # what is mounted, on Linux: the fifth word of a line is where
NAME_BYTES = 255  # of a file's name, where the system does not say how many there may be
SECONDS_OPEN = 60.0  # without locks, a file that was written to so recently may be one that is about to be renamed


def check_place(path, *others):
    """Raise, before any work is done, unless a file can be written at ``path`` without harm.

    A file is made there and removed again: that finds what no rule foresees.

    Parameters
    ----------
    path : str or Path
    *others : str or Path
        Files that are read, and so must not be written over.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If something else than a file is there, or one of the others.
    OSError
        If the system refuses, of the subclass that it chose; FileNotFoundError if there is no such folder.
    """
    path = Path(path)
    with _in_words(path):
        target, before = _target(path)
        if before is not None and any(os.path.exists(other) and os.path.samefile(target, other) for other in others):
            raise ValueError(f"{str(path)!r} is read by this command and must not be written over: give another name.")
        if before is not None and _is_mount(target):
            raise ValueError(f"{str(path)!r} is mounted by itself, and so cannot be replaced: mount its folder, or "
                             "give another name.")  # fmt: skip
        with _temporary(path, target, before) as (_, file):
            file.write(b"\0")  # on a disk that is full there is still room for an empty file
    return path


@contextlib.contextmanager
def replacing(path):
    """A new file beside ``path`` to write to, renamed to it when the block has ended well, and removed else.

    A file that is there already keeps its mode, and its owner where that is allowed; a symbolic link stays, and the
    file that it leads to is replaced. The new one is on the disk when the block is left.

    Parameters
    ----------
    path : str or Path

    Yields
    ------
    Path
        Of an empty file, with the suffix of ``path``, which is to be opened and written to.

    Raises
    ------
    ValueError, OSError
        As `check_place` does, and if the file cannot be written to or renamed.
    """
    path = Path(path)
    with _in_words(path):
        target, before = _target(path)
        _remove_leftovers(target)
    with _temporary(path, target, before) as (temporary, file):
        made = os.fstat(file.fileno())
        if made.st_mode & 0o600 != 0o600:  # a mask may take from one's own files what the block needs
            os.chmod(temporary, 0o600)
        with _in_words(path, temporary):
            yield temporary
        with _in_words(path):
            _sync(file.fileno())
            _hand_over(file.fileno(), before or made)
            if fcntl is None:
                file.close()  # Windows does not rename a file that is open
            os.replace(temporary, target)
            _sync_folder(target.parent)


@contextlib.contextmanager
def _in_words(path, only=None):
    """What the system says against a file, or only against one of them, as a sentence with the path the user knows."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or (only is not None and error.filename not in (None, str(only))):
            raise  # a sentence already, or about something else
        told = type(OSError(error.errno, ""))(f"{str(path)!r} cannot be written: {error.strerror}. Give another place.")
        told.errno = error.errno
        raise told from error


def _target(path):
    """The file that is written for a path, where its link leads if it is one, and its status; None if it is new."""
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} holds a character that no name of a file can hold: give another name.")
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    try:
        folder = os.stat(target.parent)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no folder {str(target.parent)!r} to write {target.name!r} into.") from None
    if not stat.S_ISDIR(folder.st_mode):
        raise NotADirectoryError(f"{str(target.parent)!r} is not a folder, and {target.name!r} cannot be written into "
                                 "it: give another place.")  # fmt: skip
    try:
        before = os.stat(target)
    except FileNotFoundError:
        return target.absolute(), None
    # Files are renamed into place, which would replace a folder or a device such as /dev/null.
    if not stat.S_ISREG(before.st_mode):
        raise ValueError(f"{str(path)!r} is there already and is not a file: give another name.")
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, before.st_uid, folder.st_uid):
        raise PermissionError(f"{str(path)!r} is there already, and in the folder {str(target.parent)!r} only its "
                              "owner may replace it: give another name.")  # fmt: skip
    return target.absolute(), before


def _is_mount(target):
    """Whether a file is mounted by itself, as into a container: the system would refuse to rename another to it."""
    place = os.fsencode(os.path.realpath(target))
    with contextlib.suppress(OSError), open(MOUNTS, "rb") as mounts:
        words = (line.split()[4] for line in mounts)
        return any(re.sub(rb"\\(\d{3})", lambda octal: bytes([int(octal[1], 8)]), word) == place for word in words)
    return False


@contextlib.contextmanager
def _temporary(path, target, before):
    """A new file beside ``target``, open and locked: its path, and the file; both are gone after the block."""
    # Nobody else may look into a file that replaces one, whose mode it gets at the end. Another one gets what the
    # system gives to new files.
    mode = 0o666 if before is None else 0o600
    while True:
        name = target.parent / _new_name(target, path.suffix)
        try:
            with _in_words(path):
                file = open(name, "x+b", buffering=0, opener=lambda path, flags: os.open(path, flags, mode))  # noqa: SIM115
            with file:
                if _lock(file, name):
                    yield name, file
                    return
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _lock(file, name):
    """Lock a new file, and say whether it is still there: whoever removes leftovers may have been faster."""
    if fcntl is None:
        return True
    with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one either
        fcntl.flock(file, fcntl.LOCK_EX)
    return os.path.lexists(name)


def _new_name(target, suffix):
    """A name that no other file has: hidden, telling whose it is, and not longer than the system allows."""
    mark = f"-bpaccel-{_mark(target)}-{os.urandom(8).hex()}"
    most = NAME_BYTES
    if hasattr(os, "pathconf"):
        with contextlib.suppress(OSError):
            limit = os.pathconf(target.parent, "PC_NAME_MAX")
            most = limit if limit > 0 else most
    room = most - len(f".{mark}") - len(os.fsencode(suffix))
    if room < 0:  # no format is named by so long a suffix
        room, suffix = room + len(os.fsencode(suffix)), ""
    # Without dots, which would begin a suffix; and a character is cut off whole.
    stem = os.fsencode(target.stem.replace(".", "_"))[:room].decode("utf-8", "ignore")
    return f".{stem}{mark}{suffix}"


def _mark(target):
    """Eight digits for a name: those of two names in one folder are as good as never the same."""
    return f"{zlib.crc32(os.fsencode(os.path.normcase(target.name))):08x}"


def _remove_leftovers(target):
    """Remove the temporary files of writers to ``target`` that have died; those of the living stay."""
    pattern = re.compile(rf"\.[^.]*-bpaccel-{_mark(target)}-[0-9a-f]{{16}}(\.[^.]*)?")
    with contextlib.suppress(OSError):  # a folder may be one that is written to and not read
        for name in filter(pattern.fullmatch, os.listdir(target.parent)):
            _remove_dead(target.parent / name)


def _remove_dead(temporary):
    # What is held, or renamed by now, or another user's, is not ours to remove: the system says so by an error.
    with contextlib.suppress(OSError):
        if fcntl is not None:
            with open(temporary, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(temporary)
        elif time.time() - os.stat(temporary).st_mtime > SECONDS_OPEN:
            os.unlink(temporary)


def _hand_over(handle, before):
    """Give an open file the group, the mode and the owner of the file that it replaces, as far as that is allowed."""
    if fcntl is None:  # Windows has none of them
        return
    now, mode = os.fstat(handle), stat.S_IMODE(before.st_mode) & 0o777
    if now.st_gid != before.st_gid:
        try:
            os.fchown(handle, -1, before.st_gid)
        except OSError:
            mode &= 0o707 | (mode & 0o007) << 3  # what the old group was allowed, the new one may not be
    if now.st_mode & 0o777 != mode:
        os.fchmod(handle, mode)
    if now.st_uid != before.st_uid:
        with contextlib.suppress(OSError):
            os.fchown(handle, before.st_uid, -1)


def _sync(handle):
    """Wait until what was written is on the disk."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (EINVAL, ENOSYS, ENOTSUP):  # some file systems know no such thing
            raise


def _sync_folder(folder):
    """Wait until the names in a folder are on the disk."""
    if fcntl is None:  # Windows opens no folders
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be one that is written to and not read
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)
