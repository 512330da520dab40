"""The CPU: the only package that knows Unicorn."""
