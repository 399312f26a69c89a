"""What `/metrics` exposes: counted from Outcomes, or read at the scrape."""
