"""Convolutions, pools and what else expects rows first."""
