"""The command line. It calls `heptune.api` and shows what comes back; torch is imported only by commands that work."""
