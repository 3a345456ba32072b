"""Connections: HTTP/1.1 to requests and back, and the socket that a replica listens on."""
