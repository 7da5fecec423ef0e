"""Environments from Python: looked up, resolved, extended, named, made and bundled, in a script, notebook or step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlp_core.client.reader import default_client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlp_core.client.reader import Client
    from mlp_core.environments.project import ProjectEnvironments
    from mlp_hookspecs import EnvironmentLock


class Environment:
    """An environment: exact packages under one interpreter, as a lock in the store has them.

    Inside a step it is looked up in the run's own store. To resolve, extend, make or bundle one there, the step's
    interpreter needs the environment's plugin with all that it works with; to read what is in one, it needs nothing.

    Parameters
    ----------
    name : str
        A name with or without a tag, a lock's digest or at least the first eight digits of it, or the run, step or
        task that had it.
    client : Client, optional
        The client; by default that of the working folder.

    Raises
    ------
    NotFound
        Where there is none.
    UsageError
        Where several are meant, or the name is refused.

    Examples
    --------
    >>> from mlp_core import Environment
    >>> scoring = Environment("fraud/scoring:stable")  # doctest: +SKIP
    >>> scoring.python, scoring.packages["pandas"]  # doctest: +SKIP
    ('3.12', '2.2.3')
    >>> trained = Environment("Train/20260131-094500-123456/fit")  # doctest: +SKIP
    >>> trained.extended(packages={"shap": ""}).alias("explainer/fraud:v1")  # doctest: +SKIP
    'explainer/fraud:v1'
    """

    def __init__(self, name: str, *, client: Client | None = None, _lock: EnvironmentLock | None = None) -> None:
        """Find it."""
        self._client = client or default_client()
        self._asked = name
        self._lock = _lock if _lock is not None else self._environments.look_up(name).lock

    @classmethod
    def resolve(  # noqa: PLR0913 # options, all but one by keyword
        cls,
        backend: str = "pypi",
        *,
        packages: Mapping[str, str] | None = None,
        python: str | None = None,
        platforms: Sequence[str] = (),
        upgrade: bool = False,
        client: Client | None = None,
        **options: Any,
    ) -> Self:
        """Return the environment that meets a requirement; it is kept in the store.

        Parameters
        ----------
        backend : str
            Who resolves it: ``pypi``, ``conda`` or another environment backend.
        packages : mapping of str to str
            A version, a version specifier or nothing for each package.
        python : str, optional
            The interpreter's version; by default that of this one, to its minor version.
        platforms : sequence of str
            The platforms that it must hold for, such as ``linux-64``; by default those of the settings.
        upgrade : bool
            Whether it is resolved anew though the store has an answer to the requirement.
        client : Client, optional
            As in the class.
        **options
            Further arguments of the backend's decorator, such as ``file="requirements.txt"`` or ``channels=[...]``.

        Raises
        ------
        UsageError
            Where the requirement cannot be met.

        Examples
        --------
        >>> Environment.resolve(packages={"pandas": ">=2,<3"}, python="3.12").digest  # doctest: +SKIP
        'sha256-5d1f...'
        """
        client = client or default_client()
        environments = _environments(client, platforms)
        spec = environments.requirement(backend, _fields(packages, python, options))
        lock = environments.resolve(spec, upgrade=upgrade).lock
        return cls(lock.digest, client=client, _lock=lock)

    @property
    def digest(self) -> str:
        """Its identity: the hash of the lock."""
        return self._lock.digest

    @property
    def backend(self) -> str:
        """Who makes it: ``pypi``, ``conda`` or another environment backend."""
        return self._lock.backend

    @property
    def python(self) -> str:
        """The interpreter's version."""
        return self._lock.python

    @property
    def packages(self) -> dict[str, str]:
        """The exact version of each package; where platforms differ, the versions of all, with commas between."""
        return dict(self._lock.packages)

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that it holds for; empty where it holds for any."""
        return self._lock.platforms

    @property
    def names(self) -> list[str]:
        """What it is called in the store, sorted, each with its tag."""
        named = self._environments.catalog.named()
        return [str(each) for each in named if each.lock_digest == self.digest]

    def extended(self, *, packages: Mapping[str, str] | None = None, **options: Any) -> Self:
        """Return an environment with more packages, in which each that is here keeps its exact version.

        Parameters
        ----------
        packages : mapping of str to str
            What is added.
        **options
            Further arguments of the backend's decorator.

        Raises
        ------
        UsageError
            Where the addition needs another version of what is here; the message names it.

        Examples
        --------
        >>> Environment("fraud/scoring:stable").extended(packages={"shap": ""}).packages["shap"]  # doctest: +SKIP
        '0.46.0'
        """
        lock = self._environments.extend(self._lock, _fields(packages, None, options)).lock
        return type(self)(lock.digest, client=self._client, _lock=lock)

    def alias(self, name: str) -> str:
        """Give it a name, and return the name with its tag.

        Parameters
        ----------
        name : str
            ``name`` or ``name:tag``. The tags ``latest``, which holds where none is given, ``candidate`` and
            ``stable`` can move to another environment; any other stands for this one for good.

        Raises
        ------
        UsageError
            Where the name is refused, or stands for another environment for good.

        Examples
        --------
        >>> Environment("Train/20260131-094500-123456/fit").alias("fraud/scoring:v3")  # doctest: +SKIP
        'fraud/scoring:v3'
        """
        return str(self._environments.name(self._asked, name))

    def create(self) -> Path:
        """Make it on this host, where it is not there yet, and return the path of its interpreter.

        Raises
        ------
        MlpError
            Where it cannot be made.

        Examples
        --------
        >>> import subprocess
        >>> python = Environment("fraud/scoring:stable").create()  # doctest: +SKIP
        >>> subprocess.run([python, "-c", "import pandas"], check=True)  # doctest: +SKIP
        """
        from mlp_core.environments.host import HostEnvironments

        with HostEnvironments() as host:
            return Path(self._environments.make(self._lock, host).python)

    def bundle(self, platform: str | None = None) -> list[str]:
        """Put its packages into the store, so that it can be made without a network, and return their files' names.

        Parameters
        ----------
        platform : str, optional
            For which platform, such as ``linux-64``; by default this host's.

        Raises
        ------
        MlpError
            Where the packages cannot be had.

        Examples
        --------
        >>> Environment("tools/six:v1").bundle("linux-64")  # doctest: +SKIP
        ['six-1.17.0-py2.py3-none-any.whl']
        """
        from mlp_core import names
        from mlp_core.environments.bundling import this_platform

        wanted = this_platform() if platform is None else names.platform(platform)
        return sorted(self._environments.bundle(self._environments.keep(self._asked), wanted).files)

    @functools.cached_property
    def _environments(self) -> ProjectEnvironments:
        """The environments of the client's store."""
        return _environments(self._client)

    def __eq__(self, other: object) -> bool:
        """Tell whether both are one lock."""
        return self.digest == other.digest if isinstance(other, Environment) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        """Show it as the call that makes it."""
        return f"Environment({self._asked!r})"


def _environments(client: Client, platforms: Sequence[str] = ()) -> ProjectEnvironments:
    """Return the environments of a client's store; imported where they are asked for."""
    from mlp_core.environments.project import ProjectEnvironments

    return ProjectEnvironments(client.session, platforms=platforms)


def _fields(packages: Mapping[str, str] | None, python: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a decorator, without those that were not given."""
    given = {"packages": dict(packages or {}), **options}
    return {**given, "python": python} if python is not None else given
