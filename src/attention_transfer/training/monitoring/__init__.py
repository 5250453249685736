"""What a run shows while it goes on: progress, probes, experiment trackers."""
