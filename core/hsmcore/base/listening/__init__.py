"""Listening sockets that idle clients cannot exhaust: for the console (hsmcore.serve) and the gateway.

Reading order: sockets, connections, door, http.
"""
