"""`salt selftest`: whether a card computes what it should, and how fast, without a download."""
