"""Techniques competing on a person's own data under one budget, and the verdict."""
