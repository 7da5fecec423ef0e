"""How ``python -m mlp_core.cli`` is the same as ``mlp``."""

from __future__ import annotations

import sys

from mlp_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
