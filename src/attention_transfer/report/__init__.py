"""What people look at. Reads records and raw maps only: no model, no torch."""
