"""Along an axis that must not be the rows."""
