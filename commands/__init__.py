"""The groups of commands: each parses, calls one function and prints. cli.py joins them."""
