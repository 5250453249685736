"""Monitoring of a run: progress, attention maps of probe images, experiment trackers."""
