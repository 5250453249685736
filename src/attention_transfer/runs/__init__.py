"""A run's folder: its configuration, record, metrics, checkpoints and raw attention maps."""
