"""Studies: grids of runs, each started by one command, that check the paper's claims."""
