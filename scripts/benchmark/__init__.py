"""What `scripts/bench` runs: the gateway beside its peers, in one run, with the CPU time as the system counts it."""
