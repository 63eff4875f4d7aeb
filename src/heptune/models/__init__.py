"""Base models: loading, the anatomy of an architecture, forest attention."""
