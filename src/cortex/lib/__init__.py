"""What handlers import. Light: the standard library only, nothing else of the package."""
