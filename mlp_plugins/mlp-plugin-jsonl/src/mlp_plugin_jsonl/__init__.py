"""The observer that writes a run's events as JSON lines."""
