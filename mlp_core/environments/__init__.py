"""What the platform knows of execution environments: kept locks and names, what a host has made, and who needs what."""
