"""``python -m attention_transfer``."""

import os
import sys

# Python puts the current folder first on the path: a file there, such as random.py in the run
# folder of someone else, would be imported in the place of a library.
if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]

from attention_transfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
