"""``python -m attention_transfer``."""

import sys

from attention_transfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
