"""A run from its beginning to its use: the data posed as a task, the base loaded, trained, restored, tested."""
