"""The reliability harness: rows that do harm from a seed, and count broken promises."""

from mlp_reliability.result import Result
from mlp_reliability.rows import ROWS, Row, run_row

__all__ = ["ROWS", "Result", "Row", "run_row"]
