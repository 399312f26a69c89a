"""What `/metrics` tells: counted from Outcomes, or read when it is asked."""
