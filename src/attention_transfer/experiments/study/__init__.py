"""Studies: tables of runs over arms and seeds, planned, run, resumed and summarized."""
