"""`python -m deevo_ext`: the environment report, or any command of `deevo` if one is named."""

import sys

from deevo_ext.cli import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["info"])
