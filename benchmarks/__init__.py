"""What is measured, against what; nothing but tests imports it."""
