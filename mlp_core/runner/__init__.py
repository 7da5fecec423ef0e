"""What runs a flow: planning, admission, the driver, and what it needs from the host."""

from mlp_core.runner.planning import CheckedFlow, FlowErrors, check_flow
from mlp_core.runner.progress import Progress, SilentProgress
from mlp_core.runner.run import RunOptions, RunResult, run_flow

__all__ = [
    "CheckedFlow",
    "FlowErrors",
    "Progress",
    "RunOptions",
    "RunResult",
    "SilentProgress",
    "check_flow",
    "run_flow",
]
