"""A published value taken apart into what it was made of."""
