"""Files that replace what was there before as a whole or not at all, and places that are checked before any work."""

import contextlib
import os
import tempfile
from pathlib import Path


def check_place(path, *others):
    """Raise, before any work is done, unless a file can be written at ``path`` without harm.

    Parameters
    ----------
    path : str or Path
    *others : str or Path
        Files that are read, and so must not be written over.

    Returns
    -------
    Path
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {str(path.parent)!r} may not be written to.")
    # Files are renamed into place, which would replace a folder or a device such as /dev/null.
    if path.exists() and not path.is_file():
        raise ValueError(f"{str(path)!r} is there already and is not a file: give another name.")
    if path.exists() and any(Path(other).exists() and path.samefile(other) for other in others):
        raise ValueError(f"{str(path)!r} is read by this command and must not be written over: give another name.")
    return path


@contextlib.contextmanager
def replacing(path):
    """A new path beside ``path``, renamed to it when the block has ended well, and removed when it has not."""
    path = check_place(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # temporary files are private; this one is a file like any other
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
