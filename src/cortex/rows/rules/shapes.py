"""Shapes as values, and what is made from them."""
