"""What happened to whom (events), and what runs say (logs)."""
