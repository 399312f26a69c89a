"""`python -m gateway`, and the command `gateway`."""

import mimetypes
import sys


def main() -> int:
    """Run the command line.

    aiohttp reads the system's tables of file types when it is imported. They take a third of a megabyte, and no answer
    has its type of them.
    """
    mimetypes.knownfiles.clear()
    from gateway.cli import main as run  # noqa: PLC0415 - see above

    return run()


if __name__ == "__main__":
    sys.exit(main())
