"""Builds the compiled kernels into the package when it is installed or made a wheel; it never fails either.

Whatever goes wrong, the package is then without kernels and works with its other engines; the reason lies in it, as
`bpaccel/native/lib/reason.txt`. Two environment variables are read: BPACCEL_PURE=1 asks for no compiler and builds
nothing, BPACCEL_TARGET names another platform (`bpaccel.native.build.TARGETS`) for which the wheel is to be.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = "bpaccel/native/lib"


class KernelsHook(BuildHookInterface):
    folder = None  # where a wheel's libraries lie until it is written

    def dependencies(self):
        """A compiler, where the machine has none that serves and its pip finds one."""
        try:
            return [] if _pure() else self._build().requirements(_target(), _platforms())
        except Exception:  # `initialize` meets it again, and keeps it as the reason
            return []

    def initialize(self, version, build_data):
        try:
            if version == "editable":
                self._fill(Path(self.root, LIBRARIES))
                return
            # A wheel gets what is built for it now, never what lies in the tree from an earlier build.
            self.folder = tempfile.TemporaryDirectory(prefix="bpaccel-build-", ignore_cleanup_errors=True)
            folder = Path(self.folder.name)
            tag = self._fill(folder)
            for path in sorted(folder.iterdir() if tag else folder.glob("reason.txt")):
                build_data["force_include"][str(path)] = f"{LIBRARIES}/{path.name}"
            if tag:
                build_data["pure_python"], build_data["tag"] = False, tag
        except Exception as failure:
            self.app.display_warning(f"The kernels were not built, and the package cannot keep the reason: {failure}")

    def finalize(self, version, build_data, artifact_path):
        if self.folder:
            self.folder.cleanup()

    def _fill(self, folder):
        """Build the libraries into a folder, or write there why not; returns the tag of a wheel with them, or None."""
        try:
            if not _pure():
                build = self._build()
                build.build(_target(), str(folder))
                return _tag(build)
            reason = "BPACCEL_PURE was set at the installation; python -m bpaccel.native.build builds the kernels."
        except Exception as failure:
            known = type(failure).__name__ == "BuildError"
            reason = str(failure) if known else f"The build failed with {type(failure).__name__}: {failure}."
        folder.mkdir(parents=True, exist_ok=True)
        Path(folder, "reason.txt").write_text(" ".join(reason.split()) + "\n", encoding="utf-8")
        self.app.display_warning(reason)
        return None

    def _build(self):
        """The module that builds, of these very sources; it needs nothing but Python."""
        sys.path.insert(0, self.root)
        try:
            from bpaccel.native import build
        finally:
            sys.path.remove(self.root)
        if not Path(build.__file__).resolve().is_relative_to(Path(self.root).resolve()):
            raise ImportError(f"another bpaccel is loaded already, from {build.__file__}")
        return build


def _pure():
    return os.environ.get("BPACCEL_PURE", "0") not in ("", "0")


def _target():
    return os.environ.get("BPACCEL_TARGET") or None


def _platforms():
    """The tags of the wheels that this Python takes."""
    from packaging.tags import sys_tags

    return {tag.platform for tag in sys_tags()}


def _tag(build):
    target = build.TARGETS[_target() or build.host()]
    # A wheel that is built where it is installed says so: every pip takes such a one, whatever its C library.
    own = _target() is None and target.system == "linux"
    return f"py3-none-{sysconfig.get_platform().replace('-', '_') if own else target.platforms}"
