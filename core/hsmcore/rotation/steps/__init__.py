"""What each step of a rotation does. Every effect may be begun, cut off and begun again."""
