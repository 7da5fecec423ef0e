"""Keep a Ray cluster of two nodes, in a process of its own: Ray reads whether to ask for a token once a process.

It prints the head's address, and then obeys lines on its standard input, each answered by a line: ``add NAME`` starts a
node with two of the resource NAME, ``lose NAME`` ends it as a power cut would. The input's end ends the cluster.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from ray.cluster_utils import Cluster

NODE: Final[dict[str, Any]] = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # where Ray's own prints go
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    nodes = {}
    answers.write(f"{cluster.address}\n")
    for line in sys.stdin:
        word, name = line.split()
        if word == "add":
            nodes[name] = cluster.add_node(resources={name: 2}, **NODE)
        else:
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        answers.write("done\n")
    cluster.shutdown()


if __name__ == "__main__":
    main()
