"""Small worlds and helpers that several test suites share."""
