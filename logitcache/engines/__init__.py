"""Engines turn token ids into top-k targets."""
