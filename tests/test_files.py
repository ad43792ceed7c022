"""Files that replace what was there before: whole or not at all, with its mode, through links, without leftovers.

A leftover is made here as a writer that died leaves it: a file of a name that `replacing` gave, which nobody holds.
"""

import contextlib
import errno
import gc
import os
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from bpaccel import bench, files, plots
from bpaccel.files import check_place, replacing
from bpaccel.readers import save_column

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes, links for all, or locks of this kind")
root = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root may act as another user")
NOBODY = 65534


def save(path, content=b"new"):
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def left_behind(path):
    """A temporary file of a writer to ``path`` that has died."""
    with contextlib.suppress(ZeroDivisionError), replacing(path) as temporary:
        raise ZeroDivisionError
    temporary.write_bytes(b"half")
    return temporary


@pytest.fixture
def public():
    """A folder that every user can reach, which those that pytest makes are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def acting_as(user):
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def masked(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# What a file keeps.


@posix
@pytest.mark.parametrize("kept", [0o600, 0o640, 0o644, 0o666, 0o444, 0o400, 0o755])
def test_a_file_keeps_its_mode_and_nobody_else_sees_it_before(tmp_path, kept):
    path = tmp_path / "m"
    path.write_bytes(b"old")
    os.chmod(path, kept)
    with replacing(path) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_bytes(b"new")
    assert (mode(path), path.read_bytes(), names(tmp_path)) == (kept, b"new", ["m"])


@posix
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o000, 0o277])
def test_a_new_file_has_the_mode_of_any_new_file(tmp_path, mask):
    with masked(mask):
        with open(tmp_path / "any", "w"):
            pass
        with replacing(tmp_path / "m") as temporary:
            assert mode(temporary) & 0o600 == 0o600, "the block could not write to it"
    assert mode(tmp_path / "m") == mode(tmp_path / "any") == 0o666 & ~mask


@posix
def test_the_mask_of_the_process_is_never_touched(tmp_path, monkeypatch):
    def touched(mask):
        raise AssertionError

    monkeypatch.setattr(os, "umask", touched)
    check_place(tmp_path / "m")
    save(tmp_path / "m")
    save(tmp_path / "m")


@posix
@root
def test_a_file_keeps_its_owner_and_group_where_that_is_allowed(public):
    path = public / "m"
    path.write_bytes(b"old")
    os.chmod(path, 0o640)
    os.chown(path, NOBODY, NOBODY)
    save(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, mode(path)) == (NOBODY, NOBODY, 0o640)


@posix
@root
def test_what_the_old_group_was_allowed_another_one_is_not(public):
    """Nobody may not give a file to root's group: its own group must not read what root's could."""
    os.chmod(public, 0o777)
    path = public / "m"
    for kept, expected in ((0o640, 0o600), (0o664, 0o644)):
        path.write_bytes(b"old")
        os.chmod(path, kept)
        os.setegid(NOBODY)
        try:
            with acting_as(NOBODY):
                save(path)
        finally:
            os.setegid(0)
        status = path.stat()
        assert (status.st_uid, status.st_gid, mode(path)) == (NOBODY, NOBODY, expected)
        path.unlink()


# Links.


@posix
def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path, link, second = tmp_path / "a" / "file.b.c", tmp_path / "b" / "link.png", tmp_path / "second"
    path.write_bytes(b"old")
    os.chmod(path, 0o600)
    link.symlink_to(Path("..") / "a" / "file.b.c")
    second.symlink_to(link)
    for place in (link, second):
        check_place(place)
        with replacing(place) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == place.suffix
            temporary.write_bytes(str(place).encode())
        assert path.read_bytes() == str(place).encode()
    assert link.is_symlink()
    assert second.is_symlink()
    assert not path.is_symlink()
    assert mode(path) == 0o600
    assert names(tmp_path / "a") == ["file.b.c"]
    assert names(tmp_path / "b") == ["link.png"]


@posix
def test_a_link_that_leads_nowhere_leads_to_the_new_file(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("file")
    check_place(link)
    assert names(tmp_path) == ["link"]
    save(link)
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


@posix
def test_links_that_lead_to_no_place_for_a_file(tmp_path):
    link = tmp_path / "link"
    for target, kind, words in ((tmp_path / "none" / "m", FileNotFoundError, "there is no folder .*none.* into"),
                                (tmp_path, ValueError, "link' is there already and is not a file"),
                                (os.devnull, ValueError, "link' is there already and is not a file"),
                                (link, OSError, "link' cannot be written: Too many levels")):  # fmt: skip
        link.symlink_to(target)
        for attempt in (check_place, save):
            with pytest.raises(kind, match=words):
                attempt(link)
        assert link.is_symlink()
        link.unlink()


@posix
def test_what_is_read_is_not_written_over_through_a_link(tmp_path):
    (tmp_path / "data").write_bytes(b"rows")
    (tmp_path / "link").symlink_to("data")
    for place, read in (("link", "data"), ("data", "link")):
        with pytest.raises(ValueError, match="must not be written over"):
            check_place(tmp_path / place, "none", tmp_path / read)


# On the disk.


@posix
def test_the_file_is_on_the_disk_before_it_is_renamed_and_the_name_after(tmp_path, monkeypatch):
    path, done = tmp_path / "m", []
    sync, rename = os.fsync, os.replace

    def noted_sync(handle):
        status = os.fstat(handle)
        done.append(("sync", status.st_ino, status.st_size if stat.S_ISREG(status.st_mode) else None))
        sync(handle)

    def noted_rename(old, new):
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    save(path, b"12345")
    assert done == [("sync", path.stat().st_ino, 5), "rename", ("sync", tmp_path.stat().st_ino, None)]


@posix
def test_a_file_system_without_sync_is_written_to_and_a_broken_disk_is_told(tmp_path, monkeypatch):
    path = tmp_path / "m"

    def failing(number):
        def fsync(handle):
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    save(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="m' cannot be written: Input/output error"):
        save(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["m"]


# Temporary files, and leftovers.


@pytest.mark.parametrize("name", ["m", "m.png", ".hidden", "a.b.c", "with space.csv", "x" * 255, "x" * 251 + ".svg",
                                  "x." + "y" * 253, "\N{EURO SIGN}" * 85, "\N{EURO SIGN}" * 83 + ".webp"],
                         ids=range(10))  # fmt: skip
def test_names_of_temporary_files(tmp_path, name):
    path = tmp_path / name
    check_place(path)
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert len(os.fsencode(temporary.name)) <= 255
        assert temporary.suffix == (path.suffix if len(path.suffix) < 200 else "")
        temporary.write_bytes(b"new")
    assert names(tmp_path) == [name]
    dead = left_behind(path)
    save(path)
    assert not dead.exists()


def test_leftovers_of_dead_writers_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "m.bp"
    dead = left_behind(path)
    other_suffix = dead.with_suffix(".png")  # as of a link with another name
    other_suffix.write_bytes(b"half")
    others = [left_behind(tmp_path / name) for name in ("m", "m.bp.bp", "n.bp", ".m.bp", dead.name)]
    mine = [tmp_path / f"{dead.name}.bp.bp", tmp_path / f"x{dead.name}", tmp_path / dead.name[:-6]]
    for file in mine:
        file.write_bytes(b"mine")
    if files.fcntl is None:  # without locks only old files are known to be left
        for file in (dead, other_suffix):
            os.utime(file, (0, 0))
    save(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others, *mine])


@posix
def test_leftovers_are_removed_through_a_link(tmp_path):
    path, link = tmp_path / "m.bp", tmp_path / "link.csv"
    link.symlink_to(path)
    dead = [left_behind(path), left_behind(link)]
    save(link)
    assert [file.exists() for file in dead] == [False, False]
    dead = [left_behind(path), left_behind(link)]
    save(path)
    assert [file.exists() for file in dead] == [False, False]


def test_temporary_files_of_the_living_stay_in_one_process(tmp_path):
    path = tmp_path / "m"
    with replacing(path) as first:
        first.write_bytes(b"first")
        with replacing(path) as second:
            second.write_bytes(b"second")
            check_place(path)
            save(path, b"third")
            assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["m"]


WRITER = """
import sys
from bpaccel.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"theirs")
    print(temporary, flush=True)
    sys.stdin.readline()
"""


def writer(path):
    """A process that is writing to ``path``, until a line comes; and its temporary file."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)  # fmt: skip
    return process, Path(process.stdout.readline().strip())


def test_temporary_files_of_living_processes_stay(tmp_path):
    path = tmp_path / "m"
    process, temporary = writer(path)
    with process:
        for _ in range(3):
            save(path, b"ours")
        assert (temporary.read_bytes(), path.read_bytes()) == (b"theirs", b"ours")
        process.communicate("\n")
    assert process.returncode == 0
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["m"]


@posix
def test_what_a_killed_process_leaves_is_removed_by_the_next_save(tmp_path):
    path = tmp_path / "m"
    process, temporary = writer(path)
    with process:
        process.kill()
    assert names(tmp_path) == [temporary.name]
    save(path)
    assert names(tmp_path) == ["m"]


@posix
def test_a_temporary_file_that_is_taken_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    """Whoever looks for leftovers may come between the making of a file and its lock."""
    path, lock, taken = tmp_path / "m", files.fcntl.flock, []

    def late(file, how):
        if len(taken) < 3:
            taken.extend(tmp_path.glob(".m-*"))
            taken[-1].unlink()
        lock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    save(path)
    assert len(set(taken)) == 3
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["m"])


@posix
def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    """Nothing is removed there, for nobody knows who lives."""

    def unknown(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    dead = left_behind(tmp_path / "m")
    monkeypatch.setattr(files.fcntl, "flock", unknown)
    save(tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == [dead, tmp_path / "m"]


def test_without_locks_only_old_files_are_leftovers(tmp_path, monkeypatch):
    """So it is on Windows, where a file must be closed before it is renamed."""
    monkeypatch.setattr(files, "fcntl", None)
    dead, young = left_behind(tmp_path / "m"), left_behind(tmp_path / "m")
    os.utime(dead, (0, 0))
    save(tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == [young, tmp_path / "m"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_an_error_in_the_block_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "m"
    path.write_bytes(b"old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["m"])


@posix
def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    """And nothing that the next save does not remove."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # some 200 of them would take seconds
    path, done = tmp_path / "m", False

    def interrupt(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != files.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return interrupt

    moments, before = 0, sys.gettrace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of a file that is open when the interrupt comes
        while not done:
            path.write_bytes(b"old")
            moments, left = moments + 1, moments + 1
            sys.settrace(interrupt)
            try:
                save(path)
                done = True
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            if names(tmp_path) != ["m"]:
                gc.collect()  # what the interrupt left open in a generator is held until then
            assert path.read_bytes() in (b"old", b"new")
            save(path, b"next")
            assert (path.read_bytes(), names(tmp_path)) == (b"next", ["m"])
    assert moments > 50


def test_threads_that_save_to_one_path_leave_one_whole_file(tmp_path):
    """At no time is there a file that is not whole, and no thread loses its own to another."""
    path, errors = tmp_path / "m", []
    contents = [bytes([k]) * 10_000 for k in range(4)]
    save(path, contents[0])

    def work(content):
        try:
            for _ in range(25):
                save(path, content)
                assert path.read_bytes() in contents
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names(tmp_path) == ["m"]


# What cannot be.


def test_a_folder_that_vanishes_meanwhile(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def vanish():
        with replacing(folder / "m") as temporary:
            temporary.unlink()
            folder.rmdir()

    with pytest.raises(FileNotFoundError, match="m' cannot be written: No such file or directory. Give another place"):
        vanish()


def test_a_relative_path_is_of_the_folder_where_the_work_began(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with replacing("m") as temporary:
        temporary.write_bytes(b"new")
        os.chdir("elsewhere")
    assert names(tmp_path) == ["elsewhere", "m"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("attempt", [check_place, save])
def test_what_the_system_refuses_is_a_sentence_with_the_path(tmp_path, monkeypatch, number, attempt):
    path, opened = tmp_path / "m", os.open

    def refuse(name, flags, mode=0o777):
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), name)
        return opened(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(type(OSError(number, "")), match="m' cannot be written: .*. Give another place.") as told:
        attempt(path)
    assert str(told.value) == f"{str(path)!r} cannot be written: {os.strerror(number)}. Give another place."
    assert told.value.errno == number


def test_errors_of_the_block_are_told_of_the_path_only_if_they_are(tmp_path):
    path = tmp_path / "m"

    def fail(error):
        with replacing(path) as temporary:
            raise error(temporary) if callable(error) else error

    for error in (OSError(errno.ENOSPC, "No space left on device"),
                  lambda temporary: OSError(errno.ENOSPC, "No space left on device", str(temporary))):  # fmt: skip
        with pytest.raises(OSError, match=r"m' cannot be written: No space left on device\. Give another place"):
            fail(error)
    for other in (OSError("a sentence already"), OSError(errno.ENOENT, "No such file", "font")):
        with pytest.raises(OSError) as told:
            fail(other)
        assert told.value is other
    assert names(tmp_path) == []


def test_a_place_that_is_checked_is_as_it_was(tmp_path):
    path = tmp_path / "m"
    check_place(path)
    assert names(tmp_path) == []
    path.write_bytes(b"old")
    before = path.stat()
    assert check_place(str(path)) == path
    after = path.stat()
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["m"])
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)


@pytest.mark.parametrize(("name", "kind", "words"), [
    ("x" * 256, OSError, "x' cannot be written: "),
    ("a\0b", ValueError, "holds a character that no name of a file can hold"),
    ("file/m", NotADirectoryError, "file' is not a folder, and 'm' cannot be written into it"),
    ("file/folder/m", (NotADirectoryError, FileNotFoundError), "m'"),
    ("none/m", FileNotFoundError, "there is no folder .*none' to write 'm' into"),
    ("..", ValueError, "is not a file"),
])  # fmt: skip
def test_places_where_no_file_can_be(tmp_path, name, kind, words):
    (tmp_path / "file").write_bytes(b"")
    for attempt in (check_place, save):
        with pytest.raises(kind, match=words):
            attempt(tmp_path / name)
    assert names(tmp_path) == ["file"]


@posix
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_may_not_be_written_to(public, there):
    path = public / "m"
    if there:
        path.write_bytes(b"old")
    os.chmod(public, 0o555)
    with acting_as(NOBODY) if os.geteuid() == 0 else contextlib.nullcontext():
        for attempt in (check_place, save):
            with pytest.raises(PermissionError, match="m' cannot be written: Permission denied. Give another place."):
                attempt(path)
    os.chmod(public, 0o755)


@posix
@root
def test_another_users_file_in_a_folder_such_as_tmp(public):
    """It can be written beside, and not be replaced: that must not be found out after the work."""
    os.chmod(public, 0o1777)
    path = public / "m"
    path.write_bytes(b"old")
    with acting_as(NOBODY):
        check_place(public / "mine")
        with pytest.raises(PermissionError, match="only its owner may replace it: give another name"):
            check_place(path)
    os.chown(path, NOBODY, 0)
    with acting_as(NOBODY):
        check_place(path)
        save(path)


@posix
def test_a_file_that_is_mounted_by_itself(tmp_path, monkeypatch):
    """As into a container: no other can be renamed to it, which must not be found out after the work."""
    path, link, free = tmp_path / "a model\n", tmp_path / "link", tmp_path / "model"
    for file in (path, free):
        file.write_bytes(b"old")
    link.symlink_to(path)
    place = os.path.realpath(path).replace("\n", "\\012").replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"22 1 254:0 / / rw - ext4 /dev/vda rw\n58 22 254:0 /x {place} rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(files, "MOUNTS", mounts)
    (tmp_path / "folder").symlink_to(tmp_path)
    for mounted in (path, link, tmp_path / "folder" / path.name):
        with pytest.raises(ValueError, match="is mounted by itself, and so cannot be replaced"):
            check_place(mounted)
    check_place(free)
    monkeypatch.setattr(files, "MOUNTS", tmp_path / "none")  # on other systems
    check_place(path)


@posix
def test_a_folder_that_is_written_to_and_not_read(public):
    os.chmod(public, 0o333)
    with acting_as(NOBODY) if os.geteuid() == 0 else contextlib.nullcontext():
        check_place(public / "m")
        save(public / "m")
    os.chmod(public, 0o755)
    assert names(public) == ["m"]


FULL = """
import resource, sys
from bpaccel.files import check_place
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    check_place(sys.argv[1])
except OSError as error:
    print(error)
"""


@posix
def test_a_place_where_only_an_empty_file_fits(tmp_path):
    """As on a full disk, or at the end of a quota; a limit on the size of files stands in for them."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{str(tmp_path / 'm')!r} cannot be written: File too large")
    assert names(tmp_path) == []


# Who writes files by it.


def draw(path):
    pytest.importorskip("matplotlib")
    plots.scaling(path, {"a": ([1, 10], [1.0, 2.0])}, title="", ylabel="")


@posix
@pytest.mark.parametrize(("name", "write"), [
    ("column.csv", lambda path: save_column(path, "y", np.array([1.5, 2.5]))),
    ("report.json", lambda path: bench.write(path, {"rows": 4})),
    ("picture.png", draw),
    ("picture.svg", draw),
])  # fmt: skip
def test_predictions_reports_and_pictures_keep_modes_and_links(tmp_path, name, write):
    path, link = tmp_path / name, tmp_path / f"link{Path(name).suffix}"
    write(tmp_path / f"new{path.suffix}")
    path.write_bytes(b"old")
    os.chmod(path, 0o600)
    link.symlink_to(name)
    write(link)
    assert link.is_symlink()
    assert mode(path) == 0o600
    assert path.read_bytes()[:8] == (tmp_path / f"new{path.suffix}").read_bytes()[:8] != b"old"
    assert len(names(tmp_path)) == 3
