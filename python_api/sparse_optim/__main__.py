"""``python -m sparse_optim``, the same as the ``sparse-optim`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
