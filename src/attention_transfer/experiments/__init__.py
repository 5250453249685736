"""Experiments: configurations of several runs, and what they show together."""
