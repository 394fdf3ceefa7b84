"""`hsmcore tune`: how many sessions a device can use, measured on the device itself.

Reading order: knee (the definition), sweep, device, document, picture, cli.
"""
