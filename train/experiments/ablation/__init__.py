"""The study room: Salt's claims in small, on the Shapes world, arm by arm."""
