"""The row ``hostile``: names, parameters, journals, pickles and archives that somebody made to do harm.

Each is tried through an entry point, in a process that Python's audit hooks watch. It may not write outside of its
folder, nor start or unpickle anything where nothing is to be loaded, nor print what a terminal obeys, a traceback, or
an internal error, nor take long.
"""

from mlp_reliability.hostile.row import run

__all__ = ["run"]
