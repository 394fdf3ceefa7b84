"""Signing for as long as one likes, and nothing left at the end."""
