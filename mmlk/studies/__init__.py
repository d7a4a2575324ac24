"""Comparisons of several models: they start trainings and tests, and report on them."""
