"""What is told about a request, off its path."""
