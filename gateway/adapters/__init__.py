"""What each kind of endpoint speaks, and at which URLs."""
