"""What is logged, counted and stored about requests, off the request path."""
