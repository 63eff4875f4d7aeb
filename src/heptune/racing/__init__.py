"""Techniques competing on the person's own data under one budget, and the verdict."""
