"""Configuration as plain data, recipes, and the command-line flags. Imports no torch."""
