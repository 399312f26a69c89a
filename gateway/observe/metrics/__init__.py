"""What `/metrics` exposes: counted from Outcomes, or read during a scrape."""
