"""Independent references: plain torch, written from the papers' equations alone, one file for each technique.

Each file has `apply(model, technique, values)`: it puts the equations into a plain model of transformers, with the
trained tensors `values` (by name), and returns the leaves to differentiate, by the same names. Nothing of the engine,
of forest attention or of the technique's own code is used.
"""
