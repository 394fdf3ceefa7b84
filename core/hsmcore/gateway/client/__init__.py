"""The gateway's client: a KeyManager that asks another process.

Reading order: arguments, request, outbox, dialing, link, connections, client.
"""
