"""The steps of a rotation. Every effect may be begun, cut off and begun again."""
