"""The HTML page about finished runs. Reads records and raw maps only: no model, no torch."""
