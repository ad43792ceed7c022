"""The command line: `bpaccel info | tutorial | bench | train | predict`.

Bad input ends with one sentence on standard error and exit code 2. The work is done elsewhere: a command here reads
its options, calls the module that knows, and prints.
"""

import importlib.metadata
import platform
import sys

import typer
from rich.console import Console
from rich.table import Table

from bpaccel.backends import backends
from bpaccel.engines import ENGINES, thread_count

app = typer.Typer(
    help=__import__("bpaccel").__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console(highlight=False)


def run():
    """Run the command, and turn what the user can mend into one sentence and exit code 2."""
    try:
        app()
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {_sentence(error)}")
        sys.exit(2)
    except MemoryError:
        Console(stderr=True, highlight=False).print("[red]error:[/] not enough memory: use fewer rows, or batches.")
        sys.exit(2)


def _sentence(error):
    from rich.markup import escape

    if isinstance(error, OSError) and error.strerror:
        return escape(f"{error.strerror}: {error.filename}")
    return escape(str(error))


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@app.command()
def info():
    """Versions, backends with the reason why not, devices, engines, BLAS, threads."""
    console.print(f"bpaccel {_version('bpaccel')}, Python {platform.python_version()}, {platform.platform()}")
    table = Table("backend", "version", "state", title="Backends", title_justify="left")
    for name, state in backends().items():
        module = sys.modules.get(name)
        table.add_row(name, getattr(module, "__version__", "") or "", state)
    console.print(table)
    console.print(f"engines: {', '.join(ENGINES)}")
    console.print(f"threads: {thread_count()}")
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        console.print("BLAS: unknown (threadpoolctl is not installed)")
    else:
        for pool in threadpool_info():
            kind = pool.get("architecture") or pool["user_api"]
            console.print(f"{pool['user_api']}: {pool['internal_api']} {pool['version']}, {kind}, {pool['num_threads']} threads")
