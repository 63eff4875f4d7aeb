"""Scores, their uncertainty, and the baselines they are held against."""
