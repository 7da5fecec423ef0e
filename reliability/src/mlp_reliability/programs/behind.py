"""Run the command ``mlp`` with another program in the place of the interpreter that it starts workers with.

``python behind.py INTERPRETER ARGUMENT...``
"""

from __future__ import annotations

import sys

from mlp_core.cli import main

if __name__ == "__main__":
    sys.executable = sys.argv[1]
    sys.exit(main(sys.argv[2:]))
