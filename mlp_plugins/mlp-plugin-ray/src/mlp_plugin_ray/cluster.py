"""How the bridge gets into a Ray cluster: addresses, what to say where that fails, and the local cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROBE_SECONDS: Final = 5.0
"""How long an address has to take a connection. Ray itself waits for minutes, and does not say for what."""

_OBJECT_STORE_BYTES = 128 << 20
"""The local cluster's store for Ray's own objects, of which this plugin makes none to speak of."""

_TASK_NAMES: Final = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


@attrs.frozen
class Connection:
    """A cluster that this process is connected to.

    Attributes
    ----------
    address : str
        Of its head.
    is_ours : bool
        Whether it was started for this connection, and ends with it.
    close : callable
        Leaves the cluster, and ends it if it is ours.
    """

    address: str
    is_ours: bool
    close: Callable[[], None]


def connect(address: str | None) -> Connection:
    """Connect to a cluster, or start a local one.

    Parameters
    ----------
    address : str or None
        ``host:port`` of a cluster's head, ``auto`` for the one that this host belongs to, or None for a local one that
        ends with the connection.

    Returns
    -------
    Connection
        The open connection.

    Raises
    ------
    OSError
        Where there is no cluster or it refuses; the message names the address.
    """
    if address is not None:
        check_address(address)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "address": address or "local"}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        context: Any = ray.init(**options)
    except Exception as error:  # Ray documents none; whatever it is, the cluster cannot be used
        where = "a local Ray cluster cannot be started" if address is None else f"no connection to Ray at {address}"
        raise ConnectionError(f"{where}: {error}") from error
    return Connection(context.address_info["gcs_address"], address is None, ray.shutdown)


def check_address(address: str) -> None:
    """Refuse an address at which nothing can be there.

    Parameters
    ----------
    address : str
        ``host:port`` or ``auto``.

    Raises
    ------
    OSError
        Where it is of another form, or takes no connection.
    """
    if address == "auto":
        return
    if "://" in address:
        raise ConnectionError(
            f"Ray address {address!r} is refused: steps are launched from a host of the cluster, with host:port or auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError(f"Ray address {address!r} is refused: it must be host:port or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error


def missing_resources(options: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> str:
    """Return what no node has, however idle.

    Parameters
    ----------
    options : mapping
        What a task asks for, as `task_options` returns it.
    nodes : sequence of mapping of str to float
        The resources of each node.

    Returns
    -------
    str
        The request, for people; empty where some node could take the task.

    Examples
    --------
    >>> missing_resources({"num_cpus": 1, "resources": {"tpu": 2}}, [{"CPU": 4}, {"CPU": 4, "tpu": 1}])
    'CPU: 1, tpu: 2'
    """
    asked = {_TASK_NAMES[name]: amount for name, amount in options.items() if name in _TASK_NAMES and amount}
    asked |= options.get("resources", {})
    if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        return ""
    return ", ".join(f"{name}: {amount:g}" for name, amount in asked.items())
