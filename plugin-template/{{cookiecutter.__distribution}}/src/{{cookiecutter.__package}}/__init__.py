"""{{ cookiecutter.__distribution }}: {{ cookiecutter.description }}"""

from {{ cookiecutter.__package }}.options import Timed, timed

__all__ = ["Timed", "timed"]
