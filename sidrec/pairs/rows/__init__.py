"""Training on one kind of rows (users, windows of histories) with exact resume."""
