"""Connections: HTTP/1.1 to requests and back, what status an error has, and the socket that a replica listens on."""
