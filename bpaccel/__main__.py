"""The `bpaccel` command: says what to install where the extra `cli` is not there."""

import sys


def main():
    """Run the command line."""
    try:
        import rich
        import typer
    except ImportError:
        print("The bpaccel command needs typer and rich: pip install 'bpaccel[cli]'", file=sys.stderr)
        sys.exit(2)
    del rich, typer
    from bpaccel.cli import run

    run()


if __name__ == "__main__":
    main()
