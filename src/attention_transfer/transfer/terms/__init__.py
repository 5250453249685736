"""Terms: each turns what a batch gave into one named scalar."""
