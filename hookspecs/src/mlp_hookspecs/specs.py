"""Which hooks there are: every event at which the core calls plugins, in the order of a flow's life.

Each docstring has one shape: what the hook is for; **Mode**, **Where** and **When**; what None means; what it may
raise; and an example that the tests run. `HOOKS` gives mode and place as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from mlp_hookspecs.markers import hookspec
from mlp_hookspecs.types.plugin import BackendKind

# Only annotations name these: whoever loads the specifications does not pay for every class of the contract.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlp_hookspecs.events import Event
    from mlp_hookspecs.handles import (
        ArtifactSource,
        ArtifactTarget,
        DeployTarget,
        Launcher,
        LaunchSink,
        ObjectStore,
        Settings,
        StepHandle,
        TargetContext,
    )
    from mlp_hookspecs.types import (
        ArtifactRef,
        Backend,
        Command,
        Deployment,
        DeployRequest,
        EnvironmentLock,
        EnvironmentSpec,
        LaunchRequest,
        Option,
        ProvisionedEnvironment,
        Setting,
        StepInfo,
        StepPlan,
        Wrap,
    )


@attrs.frozen
class HookInfo:
    """How the core calls a hook.

    Attributes
    ----------
    mode : {"collect", "claim", "wrap", "observe"}
        Whose answers count.
    where : {"both", "driver", "worker", "host", "observer"}
        The process that calls it.
    kind : str or None
        For a claim, the kind of backend whose owner is called.
    is_optional : bool
        Whether a plugin may declare such a backend without implementing this hook.
    """

    mode: Literal["collect", "claim", "wrap", "observe"]
    where: Literal["both", "driver", "worker", "host", "observer"]
    kind: BackendKind | None = None
    is_optional: bool = False


HOOKS: Final[Mapping[str, HookInfo]] = {
    "mlp_settings": HookInfo("collect", "both"),
    "mlp_backends": HookInfo("collect", "both"),
    "mlp_options": HookInfo("collect", "both"),
    "mlp_commands": HookInfo("collect", "driver"),
    "mlp_plan_step": HookInfo("collect", "driver"),
    "mlp_open_store": HookInfo("claim", "both", "store"),
    "mlp_resolve_environment": HookInfo("claim", "driver", "environment"),
    "mlp_bundle_environment": HookInfo("claim", "driver", "environment", is_optional=True),
    "mlp_provision_environment": HookInfo("claim", "host", "environment"),
    "mlp_fetch_secret": HookInfo("claim", "host", "secret"),
    "mlp_open_launcher": HookInfo("claim", "driver", "launcher"),
    "mlp_launch_step": HookInfo("claim", "driver", "launcher"),
    "mlp_wrap_step": HookInfo("wrap", "worker"),
    "mlp_persist_artifact": HookInfo("claim", "worker", "format"),
    "mlp_load_artifact": HookInfo("claim", "both", "format"),
    "mlp_open_target": HookInfo("claim", "driver", "target"),
    "mlp_deploy": HookInfo("claim", "driver", "target"),
    "mlp_event": HookInfo("observe", "observer"),
}
"""Mode and place of every hook, by name, in the order of a flow's life."""


@hookspec
def mlp_settings() -> Sequence[Setting]:
    """Declare the settings that the plugin reads.

    **Mode**: collect. **Where**: driver, worker and command line. **When**: once a process, after the plugins are
    loaded. A plugin that raises is disabled with a warning; two settings with one name are an error that names
    both distributions.

    Returns
    -------
    sequence of Setting
        The settings; their names begin with the plugin's name and a dot.

    Examples
    --------
    >>> from mlp_hookspecs import Setting, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_settings(self):
    ...         return (Setting("slurm.partition", default="short", help="Partition that jobs go to."),)
    """


@hookspec
def mlp_backends() -> Sequence[Backend]:
    """Declare what the plugin provides that users choose by name.

    **Mode**: collect. **Where**: driver, worker and command line. **When**: once a process, after the plugins are
    loaded. A plugin that raises is disabled with a warning; two backends of one kind and name are an error that
    names both distributions, when the name is first asked for, unless the setting ``plugins.provider`` decides.

    Returns
    -------
    sequence of Backend
        The backends. For each, the claim hooks of its kind are called on this plugin and no other.

    Examples
    --------
    >>> from mlp_hookspecs import Backend, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_backends(self):
    ...         return (Backend("format", "npz", "Compressed numpy arrays.", types=("numpy.ndarray",)),)
    """


@hookspec
def mlp_options() -> Sequence[type[Option]]:
    """Declare the decorators that the plugin understands.

    **Mode**: collect. **Where**: driver, worker and command line. **When**: once a process, after the plugins are
    loaded. A plugin that raises is disabled with a warning; two options with one name are an error that names both
    distributions.

    Returns
    -------
    sequence of type of Option
        Frozen attrs classes on `Option`; their names can be used in ``--with``.

    Examples
    --------
    >>> import attrs
    >>> from mlp_hookspecs import Option, decorator, hookimpl
    >>> @attrs.frozen
    ... class Slurm(Option):
    ...     name = "slurm"
    ...     partition: str = "short"
    >>> slurm = decorator(Slurm)
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_options(self):
    ...         return (Slurm,)
    """


@hookspec
def mlp_commands() -> Sequence[Command]:
    """Declare subcommands of ``mlp``.

    **Mode**: collect. **Where**: command line only. **When**: when a command is looked up. A plugin that raises is
    disabled with a warning; a name that is taken is an error that names both distributions.

    Returns
    -------
    sequence of Command
        The commands; their code is imported only when they are called.

    Examples
    --------
    >>> from mlp_hookspecs import Command, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_commands(self):
    ...         return (Command("queue", "mlp_plugin_slurm.queue:main", "Show the jobs of a run."),)
    """


@hookspec
def mlp_plan_step(step: StepInfo, options: Sequence[Option]) -> StepPlan | None:
    """Turn a step's options into behaviour, before anything starts.

    **Mode**: collect. **Where**: driver. **When**: once a step, when a flow is checked, run or deployed. Pure: same
    arguments, same answer. The core merges the plans of all plugins; two that set one field to different values are
    an error that names both. An exception other than those below is blamed on the plugin.

    Parameters
    ----------
    step : StepInfo
        The step.
    options : sequence of Option
        All options of the step, of every plugin; take those of your own classes.

    Returns
    -------
    StepPlan or None
        What the plugin's options decide; None for nothing.

    Raises
    ------
    ValueError, OSError
        Where an option asks for what cannot be, such as a file that is not there: an error in the flow, shown with the
        step's place.

    Examples
    --------
    >>> from mlp_hookspecs import StepPlan, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_plan_step(self, step, options):
    ...         if any(option.name == "slurm" for option in options):
    ...             return StepPlan(launcher="slurm")
    ...         return None
    """


@hookspec
def mlp_open_store(url: str, settings: Settings) -> ObjectStore | None:
    """Open a store's objects.

    **Mode**: claim by the URL's scheme (``file`` where there is none; ``fsspec`` where no plugin claims the scheme).
    **Where**: every process that reads or writes the store. **When**: at its start. Primitives only; the journal's
    logic is the core's.

    Parameters
    ----------
    url : str
        The store's URL.
    settings : mapping of str to object
        The settings in force; credentials come from here or from the environment, never from the URL.

    Returns
    -------
    ObjectStore
        The open store; None is an error, blamed on the plugin.

    Raises
    ------
    OSError
        Where the store cannot be reached; shown to the user as it is.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_open_store(self, url, settings):
    ...         from mlp_plugin_tape.store import TapeStore  # heavy libraries are imported when needed
    ...         return TapeStore(url, settings["tape.drive"])
    """


@hookspec
def mlp_resolve_environment(spec: EnvironmentSpec, platforms: Sequence[str]) -> EnvironmentLock | None:
    """Turn a requirement into an exact lock.

    **Mode**: claim by ``spec.backend``. **Where**: driver. **When**: before the first task, once for each distinct
    requirement that the store has no lock of yet. The same requirement gives the same lock as long as the index does.
    Where the requirement has a base, the lock keeps every pin of it.

    Parameters
    ----------
    spec : EnvironmentSpec
        The requirement.
    platforms : sequence of str
        The platforms that it must hold for, such as ``linux-64``.

    Returns
    -------
    EnvironmentLock
        The lock; None is an error, blamed on the plugin.

    Raises
    ------
    ValueError
        Where the requirement cannot be met; the message is shown to the user.
    OSError
        Where that cannot be found out: an index that cannot be reached, an interpreter that is missing.

    Examples
    --------
    >>> from mlp_hookspecs import EnvironmentLock, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_resolve_environment(self, spec, platforms):
    ...         return EnvironmentLock(spec.backend, content="python ==3.12.1", python="3.12.1")
    """


@hookspec
def mlp_bundle_environment(lock: EnvironmentLock, platform: str, folder: Path) -> Sequence[str] | None:
    """Put the very files that a lock names into a folder, so that the environment can be made without a network.

    **Mode**: claim by ``lock.backend``. **Where**: driver and command line. **When**: on request, and without a
    platform right after resolving a lock that has packages of its own. Each file is verified against the lock. The hook
    is optional: the environments of a backend that does without it cannot be bundled.

    Parameters
    ----------
    lock : EnvironmentLock
        The lock.
    platform : str
        The platform to take them for, such as ``linux-64``; empty for the lock's own packages alone.
    folder : pathlib.Path
        An empty folder to put them into.

    Returns
    -------
    sequence of str
        The files, relative to the folder; None is an error, blamed on the plugin.

    Raises
    ------
    ValueError
        Where the lock does not hold for the platform, or a package is not published for it.
    OSError
        Where a file cannot be had.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_bundle_environment(self, lock, platform, folder):
    ...         (folder / "tool-1.0.tar.gz").write_bytes(b"...")
    ...         return ("tool-1.0.tar.gz",)
    """


@hookspec
def mlp_provision_environment(
    lock: EnvironmentLock, root: Path, packages: Path | None
) -> ProvisionedEnvironment | None:
    """Make the interpreter that a lock describes.

    **Mode**: claim by ``lock.backend``. **Where**: the host where the step runs, before the worker. **When**: before
    the first task there that needs it. Idempotent by ``lock.digest`` and safe when many start at once. What steps run
    in is not written to afterwards: an environment that is made here is left read-only, and the core lets interpreters
    keep their bytecode elsewhere. `mlp_hookspecs.provisioning` does all of this.

    Parameters
    ----------
    lock : EnvironmentLock
        The lock.
    root : pathlib.Path
        The host's folder for environments; make yours below it, named by the digest.
    packages : pathlib.Path or None
        A folder with the files of a bundle for this platform, as `mlp_bundle_environment` put them there; then no
        network and no cache is needed. With the lock's own packages alone where it was not bundled; None where there is
        neither.

    Returns
    -------
    ProvisionedEnvironment
        The interpreter; None is an error, blamed on the plugin.

    Raises
    ------
    OSError
        Where the environment cannot be made, above all because a file is not the one that the lock names; the attempt
        fails and may be retried.

    Examples
    --------
    >>> import sys
    >>> from mlp_hookspecs import ProvisionedEnvironment, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_provision_environment(self, lock, root, packages):
    ...         return ProvisionedEnvironment(python=sys.executable, has_platform=True)
    """


@hookspec
def mlp_fetch_secret(reference: str) -> Mapping[str, str] | None:
    """Fetch a secret by reference.

    **Mode**: claim by the reference's scheme. **Where**: the host where the step runs, before the worker. **When**:
    before each attempt that asks for it.

    Parameters
    ----------
    reference : str
        A URL such as ``vault://team/database``.

    Returns
    -------
    mapping of str to str
        Environment variables; None is an error, blamed on the plugin.

    Raises
    ------
    OSError
        Where the secret cannot be fetched; the message must not contain it.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_fetch_secret(self, reference):
    ...         return {"DATABASE_PASSWORD": "..."}
    """


@hookspec
def mlp_open_launcher(name: str, settings: Settings, sink: LaunchSink) -> Launcher | None:
    """Open a launcher.

    **Mode**: claim by `name`. **Where**: driver. **When**: before the first step that uses it.

    Parameters
    ----------
    name : str
        The launcher that was asked for.
    settings : Settings
        The settings in force.
    sink : LaunchSink
        Where to push starts, logs and outcomes; thread-safe.

    Returns
    -------
    Launcher
        A context manager that the core enters and leaves; None is an error, blamed on the plugin.

    Raises
    ------
    OSError
        Where what it launches on cannot be reached; no task has started then.
    ValueError
        Where it cannot do what a setting asks for; the message names the setting, its value and what is allowed.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_open_launcher(self, name, settings, sink):
    ...         from mlp_plugin_slurm.launcher import SlurmLauncher
    ...         return SlurmLauncher(settings["slurm.partition"], sink)
    """


@hookspec
def mlp_launch_step(requests: Sequence[LaunchRequest], launcher: Launcher) -> bool | None:
    """Start a batch of attempts, or a gang.

    **Mode**: claim by the launcher's name. **Where**: driver. **When**: whenever attempts are ready and the window
    has room. Returns at once; what follows is pushed to the sink. The core owns window, retries and order.

    Parameters
    ----------
    requests : sequence of LaunchRequest
        The attempts.
    launcher : Launcher
        The open launcher that `mlp_open_launcher` returned.

    Returns
    -------
    bool
        True where the attempts were taken; None is an error, blamed on the plugin.

    Raises
    ------
    OSError
        Where nothing of the batch was started; each of its attempts then counts as lost. An attempt that cannot be
        started beside others that were is told to the sink, by `LaunchSink.lost`.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_launch_step(self, requests, launcher):
    ...         for request in requests:
    ...             launcher.submit(request)
    ...         return True
    """


@hookspec
def mlp_wrap_step(step: StepHandle) -> Wrap | None:
    """Put a context manager around a step's body.

    **Mode**: wrap. **Where**: worker. **When**: before each attempt's user code. Wraps are entered by priority, then
    name. An exception in the hook or in entering and leaving the context fails the attempt, blamed on the plugin.

    Parameters
    ----------
    step : StepHandle
        The running step.

    Returns
    -------
    Wrap or None
        The context manager; None where this step is none of the plugin's business.

    Examples
    --------
    >>> import contextlib
    >>> from mlp_hookspecs import Wrap, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_wrap_step(self, step):
    ...         step.set_current("color", "blue")
    ...         return Wrap(priority=50, name="color", context=contextlib.nullcontext())
    """


@hookspec
def mlp_persist_artifact(value: Any, target: ArtifactTarget) -> bool | None:  # an artifact is any value
    """Encode a value.

    **Mode**: claim by ``target.format``. **Where**: worker. **When**: at the end of a task, for each artifact that was
    assigned or loaded, and where a parameter's value is recorded. Same value, same bytes, as far as the format allows.

    Parameters
    ----------
    value : object
        The value.
    target : ArtifactTarget
        Where to write; it hashes, stores and syncs.

    Returns
    -------
    bool or None
        True where the value was written. None where this format cannot hold it exactly: the next less specific format
        is tried, or, where the user had named this one, the task fails with the reason.

    Raises
    ------
    Exception
        Where the value cannot be encoded; the task fails with the artifact's name, type and the message.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_persist_artifact(self, value, target):
    ...         if type(value) is not str:
    ...             return None
    ...         target.write([value.encode()])
    ...         return True
    """


@hookspec
def mlp_load_artifact(ref: ArtifactRef, source: ArtifactSource, settings: Settings) -> Any:  # an artifact is any value
    """Decode a value.

    **Mode**: claim by ``ref.format``. **Where**: worker, client. **When**: when an artifact is first read. The bytes
    are verified before.

    Parameters
    ----------
    ref : ArtifactRef
        The reference, with the metadata that the encoder described.
    source : ArtifactSource
        The content.
    settings : mapping of str to object
        The settings in force; a format whose backend says `runs_code` has to heed ``storage.pickle``.

    Returns
    -------
    object
        The value; None is a value here.

    Raises
    ------
    Exception
        Where the value cannot be decoded, for example because a library is missing; shown to the user.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_load_artifact(self, ref, source):
    ...         return bytes(source.buffer()).decode()
    """


@hookspec
def mlp_open_target(name: str, context: TargetContext) -> DeployTarget | None:
    """Open a deploy target.

    **Mode**: claim by `name`. **Where**: driver. **When**: when deployments are planned, listed, triggered or removed.

    Parameters
    ----------
    name : str
        The target that was asked for.
    context : TargetContext
        Settings, and objects of the target's own in the store.

    Returns
    -------
    DeployTarget
        The target; None is an error, blamed on the plugin.

    Raises
    ------
    OSError
        Where the target cannot be reached; shown to the user.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_open_target(self, name, context):
    ...         from mlp_plugin_airflow.target import AirflowTarget
    ...         return AirflowTarget(context.settings["airflow.dags"])
    """


@hookspec
def mlp_deploy(request: DeployRequest, target: DeployTarget) -> Deployment | None:
    """Make a version the active one of its name in a target.

    **Mode**: claim by ``request.target``. **Where**: driver. **When**: on ``mlp deploy``, and on a rollback with the
    request of the earlier version. The version is recorded before; deploying it twice changes nothing.

    Parameters
    ----------
    request : DeployRequest
        The version: plan, schedule, triggers, parameters, and the commands that run it.
    target : DeployTarget
        The open target that `mlp_open_target` returned.

    Returns
    -------
    Deployment
        Where it is; None is an error, blamed on the plugin.

    Raises
    ------
    ValueError
        Where the target cannot run this flow; the message says what it lacks.
    OSError
        Where the target cannot be reached.

    Examples
    --------
    >>> from mlp_hookspecs import Deployment, hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_deploy(self, request, target):
    ...         return Deployment(request.target, request.name, request.version, location="dags/flow.py")
    """


@hookspec
def mlp_event(event: Event, settings: Settings) -> None:
    """Be told what happened.

    **Mode**: observe. **Where**: a process of the observers' own, fed from the journal. **When**: after the record is
    committed; at least once, in order. Nothing can be changed. An exception is recorded on the run, and repeated ones
    silence the plugin for the rest of it.

    Parameters
    ----------
    event : Event
        One of the classes of `mlp_hookspecs.events`.
    settings : Settings
        The settings in force.

    Examples
    --------
    >>> from mlp_hookspecs import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def mlp_event(self, event, settings):
    ...         print(type(event).__name__, event.run_id)
    """
