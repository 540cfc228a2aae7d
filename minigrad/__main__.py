"""`minigrad doctor`: check what minigrad can use on this machine, and say how to fix what does not work."""

from __future__ import annotations

import argparse
import sys

from . import __version__, doctor


def main() -> int:
    """Start the program that the first word names."""
    if sys.argv[1:2] == ["doctor"]:
        return doctor.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="minigrad", usage="minigrad doctor", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.parse_args()
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
