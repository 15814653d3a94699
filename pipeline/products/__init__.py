"""Downloads cut from the cube: hours, days and months, each in its formats."""
