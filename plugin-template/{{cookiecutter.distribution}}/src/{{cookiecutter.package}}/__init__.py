"""{{ cookiecutter.distribution }}: {{ cookiecutter.description }}"""

from {{ cookiecutter.package }}.options import Timed, timed

__all__ = ["Timed", "timed"]
