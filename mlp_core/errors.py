"""Which errors the platform raises: one tree, each with the exit status that it ends a command with.

::

    MlpError                    1
    ├── UsageError              2   bad input, refused before the first task starts
    │   ├── FlowError               the flow's source: file, line, hint
    │   ├── ParameterError          a parameter's value
    │   ├── OptionError             a decorator's arguments, or two options that contradict each other
    │   │   └── DecoratorMissing        a decorator of a plugin that is not installed
    │   ├── SettingError            a setting's value
    │   ├── NameRefused             a name that breaks the grammar
    │   ├── UnknownBackend          a launcher, environment, format, store ... that nobody provides
    │   └── NotFound                a run, task, artifact or deployment that is not there
    ├── PluginError             1   a plugin's fault, blamed on plugin, distribution and version
    │   └── PluginRefused       2   a plugin that cannot be loaded here, though it was asked for
    ├── ArtifactError           1   a value that cannot be stored or read
    ├── StoreError              1   the store
    │   ├── StoreUnavailable    2   cannot be read or written at all
    │   ├── StoreFull           1   no room left
    │   ├── StoreFormatError    2   made by a version that this one does not know
    │   ├── StoreFenced         1   the run was taken over, or its driver was away for too long
    │   ├── StoreUntrusted      1   content that is to be signed, and is not
    │   └── StoreDamaged        1   content that does not match its recorded hash or number
    ├── RunLocked               2   another driver owns the run
    └── RunFailed               1   a run whose tasks failed
        └── RunCancelled      130   a run that was interrupted
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from mlp_hookspecs import Failure


class MlpError(Exception):
    """The base of all errors that the platform raises on purpose.

    Parameters
    ----------
    message : str
        One line that names the culprit, the value and what is allowed.
    hint : str
        The next step for the user; empty where there is none.

    Attributes
    ----------
    exit_status : int
        Class attribute: the status that a command ends with.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Make the error."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, with the hint on a line of its own."""
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(MlpError):
    """Bad input, refused before the first task starts."""

    exit_status = 2


class FlowError(UsageError):
    """A mistake in a flow's source.

    Parameters
    ----------
    message : str
        What is wrong.
    file : str
        The source file.
    line : int
        The line, 1-based; 0 where there is none.
    hint : str
        How to mend it.
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, hint: str = "") -> None:
        """Make the error."""
        super().__init__(message, hint=hint)
        self.file = file
        self.line = line

    def __str__(self) -> str:
        """Return place, message and hint, as a compiler shows them."""
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return place + super().__str__()


class ParameterError(UsageError):
    """A parameter's value is missing or refused."""


class OptionError(UsageError):
    """A decorator's arguments are refused, or two options contradict each other."""


class DecoratorMissing(OptionError, ImportError):  # noqa: N818 # the tree speaks of what happened
    """A decorator was imported whose plugin is not installed."""


class SettingError(UsageError):
    """A setting's value is refused."""


class NameRefused(UsageError):  # noqa: N818 # the tree speaks of what happened
    """A name breaks the grammar of names."""


class UnknownBackend(UsageError):  # noqa: N818 # as above
    """Nobody provides a backend of that kind and name."""


class NotFound(UsageError):  # noqa: N818 # as above
    """What was asked for is not there."""


class PluginError(MlpError):
    """A plugin's fault; the message names plugin, distribution and version."""


class PluginRefused(PluginError):  # noqa: N818 # as above
    """A plugin cannot be loaded here, though something that it provides was asked for."""

    exit_status = 2


class ArtifactError(MlpError):
    """A value cannot be stored or read."""


class StoreError(MlpError):
    """The base of the store's errors."""


class StoreUnavailable(StoreError):  # noqa: N818 # as above
    """The store cannot be read or written at all."""

    exit_status = 2


class StoreFull(StoreError):  # noqa: N818 # as above
    """No room is left in the store."""


class StoreFormatError(StoreError):
    """The store was made by a version that this one does not know."""

    exit_status = 2


class StoreFenced(StoreError):  # noqa: N818 # as above
    """The run was taken over by another process, or its driver was away for too long: nothing more is committed."""


class StoreUntrusted(StoreError):  # noqa: N818 # as above
    """Content that might run code, from records that are to be signed and are not."""


class StoreDamaged(StoreError):  # noqa: N818 # as above
    """Stored content does not match its recorded hash or number."""


class RunLocked(MlpError):  # noqa: N818 # as above
    """Another driver owns the run."""

    exit_status = 2


class RunFailed(MlpError):  # noqa: N818 # as above
    """A run ended because tasks failed.

    Attributes
    ----------
    run_id : str
        The run; empty where it is not known.
    """

    run_id: str = ""


class RunCancelled(RunFailed):
    """A run was interrupted."""

    exit_status = 130


class CaughtFailure(Exception):  # noqa: N818 # the field's word for what a step's @catch leaves behind
    """What a caught failure leaves in the artifact that `@catch` names: always true, printable, loadable anywhere.

    Attributes
    ----------
    kind : str
        ``exception``, ``timeout``, ``killed``, ``exit`` and so on.
    type : str
        Dotted name of the exception's type; empty where there was none.
    message : str
        One line.
    traceback : str
        The user's frames as text.
    """

    def __init__(self, kind: str, type: str, message: str, traceback: str) -> None:  # noqa: A002 # Metaflow's word
        """Make the record."""
        super().__init__(kind, type, message, traceback)
        self.kind = kind
        self.type = type
        self.message = message
        self.traceback = traceback

    @classmethod
    def of(cls, failure: Failure) -> CaughtFailure:
        """Return the record of a failure."""
        return cls(failure.kind, failure.type, failure.message, failure.traceback)

    def __str__(self) -> str:
        """Return the message."""
        return self.message
