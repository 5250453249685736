"""Experiments: several training runs that are compared with one another."""
