"""What every room may use: errors, units, events, registries and seeds. Imports no torch."""
