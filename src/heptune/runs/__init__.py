"""The run directory: what a run was told, what it did, and what it left. Imports no torch."""
