"""What each kind of endpoint speaks and where."""
