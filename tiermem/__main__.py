"""`python -m tiermem`: the command line."""

import sys

from tiermem.cli import main

if __name__ == "__main__":
    sys.exit(main())
