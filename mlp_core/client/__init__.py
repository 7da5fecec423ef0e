"""The client: how runs are read back, from any process."""

from mlp_core.client.contents import Artifacts, Code, Metadata, TaskData, TaskException
from mlp_core.client.environments import Environment
from mlp_core.client.reader import Client, client_for, default_client, default_namespace, get_namespace, namespace
from mlp_core.client.runs import Flow, Metaflow, Run
from mlp_core.client.tasks import DataArtifact, Step, Task

__all__ = [
    "Artifacts",
    "Client",
    "Code",
    "DataArtifact",
    "Environment",
    "Flow",
    "Metadata",
    "Metaflow",
    "Run",
    "Step",
    "Task",
    "TaskData",
    "TaskException",
    "client_for",
    "default_client",
    "default_namespace",
    "get_namespace",
    "namespace",
]
