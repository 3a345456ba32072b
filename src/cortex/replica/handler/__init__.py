"""Users' code: how it is loaded, called and ended, and what it finds around it."""
